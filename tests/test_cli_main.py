"""The command line as a whole: help, version, list, and errors of one line."""

import json
import subprocess
import sys
from contextlib import contextmanager

import click
import jax
import pytest
from click.testing import CliRunner

import ntrk_jax as nk
from ntrk_jax.cli import main
from ntrk_jax.cli.console import OneLineErrors, Progress


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


@contextmanager
def quick_compilation():
    """Programs that are compiled fast and run slowly: the command line's tests run each of theirs once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    if not before:
        jax.config.update("jax_disable_most_optimizations", before)
        jax.clear_caches()


def refused(result, *words):
    """Exit status 2, one line on stderr that contains the words, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert [line.startswith("Error: ") for line in lines] == [True], result.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(args):
    result = invoke(*args)
    assert result.exit_code == 0
    for command in ("demo", "sample", "train", "list"):
        assert command in result.output


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert nk.__version__ in result.output


def test_list_names_every_method():
    result = invoke("list")
    assert result.exit_code == 0
    for name in nk.methods.CATALOGUE:
        assert f" {name} " in result.output


def test_list_as_json_is_the_catalogue():
    rows = json.loads(invoke("list", "--json").stdout)
    assert set(rows) == set(nk.methods.CATALOGUE)
    assert rows["ntrk"]["strength"] == "strength"
    assert rows["ntrk"]["high"] == 1.0
    assert rows["dps"]["high"] is None  # no upper bound


def test_unknown_command_and_option():
    refused(invoke("nope"), "nope")
    refused(invoke("list", "--nope"), "--nope")
    refused(invoke("train", "digits"), "--out")


def test_heavy_packages_are_not_imported_for_help():
    code = (
        "import sys; from ntrk_jax.cli import main\n"
        "heavy = {'matplotlib', 'sklearn', 'flax', 'orbax', 'diffrax', 'optax', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_list_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke("list")
    assert max(map(len, result.stdout.splitlines())) <= 80
    for name in nk.methods.CATALOGUE:
        assert f"{name}: " in result.stdout


def test_errors_reach_a_caller_as_they_are():
    with pytest.raises(click.UsageError, match="nope"):
        main.main(["nope"], standalone_mode=False)


def test_a_full_disk_is_one_line():
    @click.group(cls=OneLineErrors)
    def group():
        pass

    @group.command()
    def write():
        raise OSError(28, "No space left on device")

    refused(CliRunner().invoke(group, ["write"]), "No space left on device")


def test_an_interrupt_says_that_nothing_was_written():
    @click.group(cls=OneLineErrors)
    def group():
        pass

    @group.command()
    def stop():
        raise KeyboardInterrupt

    result = CliRunner().invoke(group, ["stop"])
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr


def test_progress_in_a_log_is_one_line_a_stage(capsys):
    with Progress(2) as progress:
        progress.say("not shown")
        progress.advance("first")
        progress.advance("second")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["1/2 first", "2/2 second"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(2) as progress:
        progress.say("thinking")
        progress.advance("first")
    assert "/2" in capsys.readouterr().err
