"""The full comparison: every method of the catalogue on the named targets, at one budget, tuned by one rule.

    python benchmarks/bench_compare.py [--targets das9,das8,...] [--methods all] [--nfe 100] [--seeds 4] [--num 1000]
    python benchmarks/bench_compare.py --steps 100 --particles 100 --targets das9,das8 --num 64 --methods fk,tds,das
    python benchmarks/bench_compare.py --targets cardoso8 --observed 1 --instances 20 --kernel "DDIM(eta=0.85)"

The machinery of `ntrk compare`: one JSON line a target and method, and at the end the tables in Markdown. With
--instances I the inverse problem is drawn I times, each instance being one seed, as in its published protocol: the
exact values, the floor and the strengths are those of each instance.
"""

import argparse
import time

import numpy as np
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax.cli.compare_report import cells
from ntrk_jax.cli.compare_runs import Budget
from ntrk_jax.cli.compare_study import Plan, compare_method, judge_for, refusal, summary_of
from ntrk_jax.cli.console import BadInput
from ntrk_jax.cli.problems import problem

TARGETS = "das9,das8,skew2,skew8,skew64,cardoso8,cardoso80,double_well,ring,step,field32"


def study(target, names, plan, **options):
    """(exact, floor, outcomes) of one target, or of one instance of it."""
    task = problem(target, **options)
    judge = judge_for(task, plan.num)
    outcomes = []
    for name in names:
        began = time.perf_counter()
        try:
            why = refusal(name, task, plan)
            outcomes.append(None if why else compare_method(name, task, judge, plan))
        except BadInput as error:
            why, outcomes = error.message, [*outcomes, None]
        if why:
            report("compare", f"{target} {name}", left_out=why)
            continue
        (entry,) = summary_of(outcomes[-1:])
        mean = {k: v for k, v in entry["mean"].items() if v is not None}
        error = {f"{k}_error": v for k, v in entry["standard_error"].items() if v is not None and k[:2] in ("sw", "me")}
        seconds = time.perf_counter() - began
        report("compare", f"{target} {name}", **options, **entry["settings"], **mean, **error, all_seconds=seconds)
    return judge.exact, judge.floor, outcomes


def instances(target, names, plan, num, observed):
    """One seed an instance; the means over instances of everything."""
    found = [study(target, names, plan._replace(seeds=(i,)), observed=observed, instance=i) for i in range(num)]
    exact, floor = (
        {k: float(np.mean([one[j][k] for one in found])) for k in found[0][j] if found[0][j][k] is not None}
        for j in (0, 1)
    )
    spread = {f"{k}_error": _error([one[1][k] for one in found]) for k in floor}
    report("compare", f"{target} floor", observed=observed, **floor, **spread)
    outcomes = []
    for i in range(len(names)):
        parts = [one[2][i] for one in found if one[2][i] is not None]
        if parts:
            outcomes.append(parts[0]._replace(rows=[row for part in parts for row in part.rows]))
            pairs = [one[2][i].rows[0]["sw1"] - one[1]["sw1"] for one in found if one[2][i] is not None]
            report(
                "compare", f"{target} {names[i]} above its floor", observed=observed, instances=len(pairs),
                sw1=float(np.mean(pairs)), sw1_error=_error(pairs),
            )  # fmt: skip
    return exact, floor, outcomes


def _error(values):
    """The standard error of a mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def table(target, plan, exact, floor, outcomes):
    """A Markdown table."""
    known = [one for one in outcomes if one is not None]
    heads, lines = cells({
        "target": target, "exact": exact, "floor": floor, "summary": summary_of(known), "settings": plan._asdict(),
    })  # fmt: skip
    print("\n".join([
        f"\n### {target}\n", f"| {' | '.join(heads)} |", "|".join(["", "---", *["---:"] * (len(heads) - 1), ""]),
        *(f"| {' | '.join(line)} |" for line in lines),
    ]), flush=True)  # fmt: skip


def main():
    """Print JSON lines, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--methods", default="all")
    for name, default in (("nfe", None), ("steps", None), ("particles", None), ("seeds", 4), ("num", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--observed", type=int)
    parser.add_argument("--instances", type=int)
    parser.add_argument("--kernel")
    parser.add_argument("--value", default="plug-in")
    parser.add_argument("--no-tune", action="store_true")
    options = parser.parse_args()
    names = ["exact", *nk.methods.names()] if options.methods == "all" else options.methods.split(",")
    nfe = 100 if options.nfe is None and options.steps is None else options.nfe
    budget = Budget(nfe, options.steps, options.particles)
    seeds = tuple(range(options.seeds))
    plan = Plan(budget, options.num, seeds, not options.no_tune, options.kernel, options.value)
    machine()
    done = []
    for target in options.targets.split(","):
        own = {"observed": options.observed} if target.startswith("cardoso") and options.observed else {}
        if options.instances and target.startswith("cardoso"):
            done.append((target, *instances(target, names, plan, options.instances, options.observed or 1)))
        else:
            done.append((target, *study(target, names, plan, **own)))
    for target, exact, floor, outcomes in done:
        table(target, plan, exact, floor, outcomes)


if __name__ == "__main__":
    main()
