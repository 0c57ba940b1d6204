"""Value objects: pytrees that print, compare and read back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntrk_jax as nk
from ntrk_jax.tree import Function, describe, digest


@nk.pytree
class Thing:
    strength: float = 1.0
    name: str = nk.static("plain")
    table: jax.Array | None = nk.derived()

    def __post_init__(self):
        object.__setattr__(self, "table", jnp.arange(3.0) * self.strength)


@nk.pytree
class Holder:
    value: object = None


def test_leaves_statics_and_derived_tables():
    thing = Thing(2.0, "other")
    assert len(jax.tree.leaves(thing)) == 2
    assert repr(thing).endswith("Thing(strength=2.0, name='other')")
    assert thing == Thing(2.0, "other")
    assert thing != Thing(2.0)
    assert thing != 3
    np.testing.assert_array_equal(nk.replace(thing, strength=3.0).table, [0.0, 3.0, 6.0])


def test_rebuilding_does_not_construct_again():
    doubled = jax.tree.map(lambda a: 2 * a, Thing(2.0))
    assert doubled.strength == 4.0
    np.testing.assert_array_equal(doubled.table, [0.0, 4.0, 8.0])
    jax.tree.map(lambda _: None, nk.kernels.DDIM(0.5))  # placeholders must not meet the range check


def test_a_name_of_ours_is_not_taken_over():
    @nk.pytree
    class Single:
        share: float = 0.5

    assert repr(Single()).endswith("test_tree_config.Single(share=0.5)")
    assert nk.tree.REGISTRY["Single"] is nk.Single


def test_equal_objects_have_equal_hashes():
    assert hash(Thing(2.0)) == hash(Thing(2.0))


def test_functions_given_as_fields_are_part_of_the_program():
    look = nk.Look(jnp.sin)
    assert jax.tree.leaves(look) == []
    assert isinstance(look.model, Function)
    assert "sin" in repr(look)
    assert nk.Look(jnp.sin) == look
    assert nk.Look(jnp.cos) != look


class Held:
    def __init__(self, by):
        self.by = by

    def __eq__(self, other):
        return self.__dict__ == other.__dict__

    def method(self, x):
        return self.by * x


class Scaled(Held):
    __call__ = Held.method


class Counting(Scaled):  # its attributes may be what it has seen
    __eq__ = object.__eq__


@dataclasses.dataclass
class Layer:  # as a linen module is
    act: object

    def apply(self, x):
        return self.act(x)


def closing_over(by):
    return lambda x: by * x


def twice_from(source):
    return [eval(compile(source, name, "eval"), {}) for name in ("first.py", "second.py")]


def test_functions_that_differ_in_more_than_their_names_print_differently():
    pairs = [
        (lambda x: x, lambda x: -x),
        (lambda x: x, lambda x, by=1: x),
        (closing_over(1.0), closing_over(-1.0)),
        (closing_over(np.zeros(99)), closing_over(np.ones(99))),
        (Scaled(1.0), Scaled(2.0)),
        (Held(1.0).method, Held(2.0).method),
        (functools.partial(max, 1.0), functools.partial(max, -1.0)),
        (jax.jit(lambda x: x), jax.jit(lambda x: -x)),
        (Layer(lambda x: x).apply, Layer(lambda x: -x).apply),
        (closing_over, jax.vmap(closing_over)),
    ]
    for one, other in pairs:
        assert describe(one) != describe(other)
        assert "0x" not in describe(one)
    assert describe(Counting(1.0)) == describe(Counting(2.0))
    one, other = twice_from("lambda x: (lambda y: y in {'a', 'b', 1.5})(x)")
    assert describe(one) == describe(other)
    assert describe(closing_over) == f"function('{__name__}:closing_over')"
    fn = closing_over(2.0)
    look = nk.Look(fn)
    name = repr(look).split("function('")[1].split("'")[0]
    assert nk.config.loads(repr(look), functions={name: fn}) == look


def test_a_function_that_holds_itself_is_described():
    def again(x):
        return again(x)

    assert describe(again).startswith(f"function('{__name__}:test_a_function")


def test_objects_that_hold_keys_compare():
    def held(key):
        return Holder((key, 1.0))

    assert held(jax.random.key(0)) == held(jax.random.key(0))
    assert held(jax.random.key(0)) != held(jax.random.key(1))
    assert held(jax.random.key(0)) != held(jax.random.PRNGKey(0))


def test_traced_fields_print_as_traced():
    assert "traced" in jax.jit(lambda s: _Text(repr(nk.kernels.DDIM(s))))(1.0).text


@jax.tree_util.register_static
class _Text:
    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return self.text == other.text

    def __hash__(self):
        return hash(self.text)


def test_reads_back_numbers_arrays_functions_and_nesting():
    big = jnp.arange(200.0)
    reward = nk.rewards.Linear(big, c=-1.0)
    sampler = nk.Single(
        nk.Look(jnp.tanh, reward, grad=True), nk.kernels.EDM(), nk.guidance.Sum((nk.guidance.DPS(0.5),))
    )
    text = repr(sampler)
    assert digest(big) in text
    functions = {"jax._src.numpy.ufuncs:tanh": jnp.tanh}
    name = text.split("function('")[1].split("'")[0]
    assert nk.config.loads(text, arrays=[big], functions={name: jnp.tanh, **functions}) == sampler
    with pytest.raises(ValueError, match="was not handed in; pass arrays"):
        nk.config.loads(text, functions={name: jnp.tanh})
    with pytest.raises(ValueError, match="was not handed in; pass functions"):
        nk.config.loads(text, arrays=[big])


def test_reads_back_doubles_held_on_the_host():
    reward = nk.rewards.Linear(np.array([1 / 3, 0.1]))
    assert nk.config.loads(repr(reward)) == reward


def test_reads_back_keys_and_containers():
    key = jax.random.key(3)
    text = nk.tree.describe({"key": key, "list": [1, -2.5], "one": (float("inf"),), "two": (1, 2)})
    back = nk.config.loads(text)
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(key).tolist()
    assert back["list"] == [1, -2.5]
    assert back["one"] == (float("inf"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernels.DDIM(eta=", "not the printed form"),
        ("__import__('os').system('true')", "unknown class|cannot read"),
        ("kernels.Nothing()", "unknown class 'kernels.Nothing'"),
        ("kernels.DDIM(eta=1.0, wrong=2)", "cannot be built"),
        ("kernels.DDIM(eta=1 + 1)", "only constructors and literals"),
        ("(lambda: 1)()", "cannot read"),
        ("kernels.DDIM(eta=7.0)", "must lie in"),
    ],
)
def test_reads_nothing_else(text, message):
    with pytest.raises(ValueError, match=message):
        nk.config.loads(text)


def test_strengths_of_any_plain_type_are_one_program():
    traced = []

    @jax.jit
    def run(rule):
        traced.append(rule)
        return jnp.asarray(rule.strength) + 0.0

    for strength in (0, 0.0, 1, 0.25, np.float32(0.5), np.float64(0.5), np.int32(1)):
        rule = nk.guidance.DPS(strength)
        assert isinstance(rule.strength, float)
        assert float(run(rule)) == strength
    assert len(traced) == 1


def test_numbers_without_a_default_are_one_program_too():
    net = nk.models.FlaxDenoiser(lambda w, x, t, c: x + c, "x0", jnp.array(1.0), nk.schedules.VPCosine())
    for make in (
        lambda n: nk.rewards.Ring(n, 1), lambda n: nk.rewards.Quadratic(n),
        lambda n: nk.rewards.Weighted((nk.rewards.Ring(1.0, 1.0),), (n,)),
        lambda n: nk.models.ClassifierFree(net, n, jnp.zeros(()), jnp.ones(())),
    ):  # fmt: skip
        leaves = [jax.tree.leaves(make(n)) for n in (4, 4.5, np.float32(3.0))]
        kinds = {tuple((type(a), jnp.shape(a)) for a in one) for one in leaves}
        assert len(kinds) == 1
        assert int not in {type(a) for a in leaves[0]}
