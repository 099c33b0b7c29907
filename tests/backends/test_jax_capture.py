"""Records found by tracing a loss: per-example gradients, values, and what is said of the rest."""

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import pytest
from backends.jax_cases import CASES, N, doubled, mlp, normal, square
from jax import lax
from ngd_jax._views import Layout

import ngd_core
from ngd_core import factors, losses, nn
from ngd_core.testing import assert_close


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@pytest.mark.parametrize("name", CASES)
def test_records_are_those_of_each_examples_gradient(name):
    """Value and gradients as JAX's own; records give what ``jax.grad`` gives example by example."""
    case = CASES[name]
    report = ngd_jax.report(case.loss, case.params, *case.batch)
    blocks = {
        layer.spec.name: f"{layer.spec.kind} {'x'.join(map(str, layer.spec.block_shape))}"
        for layer in report.layers
    }
    assert blocks == case.layers
    assert report.uncovered == case.uncovered

    @jax.jit
    def both(params, *batch):
        def one(*example):
            return jax.grad(case.loss)(params, *(x[None] for x in example))

        own = jax.value_and_grad(case.loss)(params, *batch)
        return own, ngd_jax.value_and_grad(case.loss)(params, *batch), jax.vmap(one)(*batch)

    own, (value, grads, records), examples = both(case.params, *case.batch)
    assert_close(np.asarray(value), np.asarray(own[0]), size=100)
    for path, x in flat(grads).items():
        assert_close(np.asarray(x), np.asarray(flat(own[1])[path]), size=1000)
    assert set(records) == set(case.layers)
    for layer in report.layers:
        each = factors.per_example_gradients(layer.spec, records[layer.spec.name])[0]
        want = jax.vmap(layer.block)(flat(examples))
        assert_close(np.asarray(each), np.asarray(want), size=1000)
        for layout, path in zip((layer.weight, layer.bias), layer.parameters, strict=False):
            leaf = flat(case.params)[path]
            assert jnp.array_equal(layout.back(layout.of(leaf)), leaf)


def test_records_of_the_cores_own_network():
    """Inputs and output gradients, number by number, as `ngd_core.nn` has them."""
    p = CASES["mlp"].params
    x, y = CASES["mlp"].batch
    model = nn.Sequential(nn.Dense("one", 3, 4), nn.Tanh(), nn.Dense("two", 4, 2))
    weights = [(p["w1"].T, p["b1"]), (p["w2"], p["b2"])]
    blocks = {
        spec.name: jnp.concatenate([w, b[:, None]], axis=1)
        for spec, (w, b) in zip(nn.specs(model), weights, strict=True)
    }

    def loss(p, x, y):
        return 0.5 * square(jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"].T + p["b2"], y)

    _, _, records = jax.jit(ngd_jax.value_and_grad(loss))(p, x, y)
    outputs, tape = nn.forward(model, blocks, x)
    want = nn.backward(model, blocks, tape, losses.gaussian.gradient(outputs, y)).records
    for spec, name in zip(nn.specs(model), ("w1", "w2"), strict=True):
        assert_close(np.asarray(records[name].a), np.asarray(want[spec].a), size=10)
        assert_close(np.asarray(records[name].g), np.asarray(want[spec].g), size=10)


def classify(p, x, y):
    z = jnp.tanh(x @ p["w"] + p["b"]) @ p["u"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)
    return -jnp.mean(chosen), z


WEIGHTS = {"w": normal(3, 4), "b": normal(4), "u": normal(4, 3)}
LABELS = jnp.asarray([0, 2, 1, 1, 0])


def dense_fisher(records, layers):
    """``(1/N) sum_n sum_m`` of outer products of each vector's per-example gradients."""
    rows = [factors.per_example_gradients(layer.spec, records[layer.spec.name]) for layer in layers]
    rows = jnp.concatenate([jnp.reshape(x, (*x.shape[:2], -1)) for x in rows], axis=-1)
    rows = jnp.reshape(rows, (-1, rows.shape[-1]))
    return rows.T @ rows / N


def test_the_exact_fisher_is_the_outputs_hessian_between_jacobians():
    x = CASES["mlp"].batch[0]
    layers = ngd_jax.report(classify, WEIGHTS, x, LABELS).layers
    f = jax.jit(ngd_jax.value_and_grad(classify, has_aux=True, fisher="exact"))
    (value, aux), grads, records = f(WEIGHTS, x, LABELS)
    own, own_grads = jax.value_and_grad(classify, has_aux=True)(WEIGHTS, x, LABELS)
    assert_close(np.asarray(value), np.asarray(own[0]), size=10)
    assert_close(np.asarray(aux), np.asarray(own[1]), size=10)
    for name, grad in grads.items():
        assert_close(np.asarray(grad), np.asarray(own_grads[name]), size=100)

    @jax.jit
    def jacobian(x):
        leaves = jax.jacrev(lambda p: classify(p, x[None], LABELS[:1])[1][0])(WEIGHTS)
        rows = jax.vmap(lambda leaf: [layer.block(leaf).reshape(-1) for layer in layers])(leaves)
        return jnp.concatenate(rows, axis=-1)

    j = np.stack([np.asarray(jacobian(one)) for one in x])
    p = np.asarray(jax.nn.softmax(aux))
    want = sum(jn.T @ (np.diag(pn) - np.outer(pn, pn)) @ jn for jn, pn in zip(j, p, strict=True))
    assert_close(np.asarray(dense_fisher(records, layers)), want / N, size=1000)


def test_sampled_gradients_are_those_of_sampled_labels():
    """Their mean outer product tends to the exact Fisher; one key gives one sample."""
    x = CASES["mlp"].batch[0]
    layers = ngd_jax.report(classify, WEIGHTS, x, LABELS).layers
    mc = ngd_jax.value_and_grad(classify, has_aux=True, fisher="mc")
    full = ngd_jax.value_and_grad(classify, has_aux=True, fisher="exact")
    want = np.asarray(jax.jit(lambda: dense_fisher(full(WEIGHTS, x, LABELS)[2], layers))())
    sample = jax.jit(lambda key: mc(WEIGHTS, x, LABELS, key=key)[2])
    keys = jax.random.split(jax.random.key(0), 4000)
    each = jax.jit(jax.vmap(lambda key: dense_fisher(sample(key), layers)))(keys)
    spread = np.std(each, axis=0) / 4000**0.5
    assert np.all(np.abs(np.mean(each, axis=0) - want) <= 5 * spread + 1e-12)
    assert np.max(spread) < 0.02 * np.max(np.abs(want))
    one, two, other = (sample(keys[k])["u"].g for k in (3, 3, 4))
    assert jnp.array_equal(one, two)
    assert not jnp.array_equal(one, other)


def test_several_terms_have_a_fisher_each():
    """A loss of class labels and of values: F is the sum of both terms' F."""
    x = CASES["mlp"].batch[0]

    def both(p, x):
        h = jnp.tanh(x @ p["w"])
        z = h @ p["u"], h @ p["v"]
        return jnp.mean(z[0]) + jnp.mean(z[1]), {"z": z}

    p = {"w": normal(3, 4), "u": normal(4, 3), "v": normal(4, 2)}
    f = ngd_jax.value_and_grad(
        both,
        has_aux=True,
        fisher="exact",
        likelihood=("categorical", "gaussian"),
        outputs=lambda aux: aux["z"],
    )
    layers = ngd_jax.report(both, p, x).layers

    def fisher(f):
        return np.asarray(jax.jit(lambda: dense_fisher(f(p, x)[2], layers))())

    want = 0.0
    for k, likelihood in enumerate(("categorical", losses.gaussian)):
        single = ngd_jax.value_and_grad(
            both,
            has_aux=True,
            fisher="exact",
            likelihood=likelihood,
            outputs=lambda a, k=k: a["z"][k],
        )
        want = want + fisher(single)
    assert_close(fisher(f), want, size=1000)


def test_a_sum_over_the_batch_and_a_penalty():
    """The records are of the examples' losses, whatever is done to their sum, and no penalty."""
    case = CASES["mlp"]

    def summed(p, x, y):
        return N * mlp(p, x, y) + 0.1 * jnp.sum(p["w1"] ** 2)

    _, _, records = jax.jit(ngd_jax.value_and_grad(mlp))(case.params, *case.batch)
    f = jax.jit(ngd_jax.value_and_grad(summed, loss_reduction="sum"))
    _, grads, others = f(case.params, *case.batch)
    own = jax.jit(jax.grad(summed))(case.params, *case.batch)
    assert_close(np.asarray(grads["w1"]), np.asarray(own["w1"]), size=100)
    for name, record in records.items():
        assert_close(np.asarray(others[name].g), np.asarray(record.g), size=100)


def test_a_factor_of_the_loss_is_no_penalty():
    """It changes each example's gradient, so there is no record of the weight it is made of."""
    x, y = CASES["mlp"].batch
    p = {"w": normal(3, 2), "idle": normal(2)}

    def factor(p, x, y):
        return square(x @ p["w"], y) * jnp.sum(p["w"] ** 2)

    def inside(p, x, y):
        def one(xy):
            return jnp.sum((xy[0] @ p["w"] - xy[1]) ** 2) + jnp.sum(p["w"] ** 2)

        return jnp.mean(jax.lax.map(one, (x, y)))

    report = ngd_jax.report(factor, p, x, y)
    assert report.layers == ()
    assert report.uncovered == {"w": "used by mul", "idle": "used on no examples"}
    assert ngd_jax.report(inside, p, x, y).uncovered["w"] == "used by add"


def test_the_batch_may_be_any_tree_and_share_the_call_with_other_arguments():
    def loss(p, batch, rate, state):
        h = batch["x"] @ p["w"] + state["mean"]
        return rate * square(h, batch["y"])

    x, y = CASES["mlp"].batch
    p, state = {"w": normal(3, 2)}, {"mean": normal(N, 1)[:2, 0]}
    batch = {"x": x, "y": y}
    _, grads, records = ngd_jax.value_and_grad(loss)(p, batch, 2.0, state)
    assert_close(np.asarray(records["w"].a), np.asarray(x))
    own = jax.grad(loss)(p, batch, 2.0, state)
    assert_close(np.asarray(grads["w"]), np.asarray(own["w"]), size=10)
    square_state = {"mean": jnp.zeros(N)}

    def other(p, batch, state):
        return square(batch["x"] @ p["w"], batch["y"]) + 0 * jnp.sum(state["mean"])

    f = ngd_jax.value_and_grad(other, batch_argnums=(1,))
    assert_close(np.asarray(f(p, batch, square_state)[2]["w"].a), np.asarray(x))


def test_reduced_sharing_is_an_option_of_the_report():
    case = CASES["heads"]
    layers = ngd_jax.report(case.loss, case.params, *case.batch, sharing="reduce").layers
    assert {layer.spec.sharing for layer in layers} == {"reduce"}


def test_a_tag_is_its_array_and_nothing_else():
    """Values and gradients are the kernel's, whatever the map in the tag would give."""
    x = normal(N, 3)

    def loss(w, x):
        return jnp.sum(ngd_jax.tag(doubled(w, x), lambda x, w: (jnp.nan * x) @ w, x, w))

    def bare(w, x):
        return jnp.sum(doubled(w, x))

    want = jax.jit(jax.value_and_grad(bare))(normal(3, 2), x)
    for f in (jax.value_and_grad(loss), ngd_jax.value_and_grad(loss)):
        value, grad = jax.jit(f)(normal(3, 2), x)[:2]
        assert_close(np.asarray(value), np.asarray(want[0]), size=10)
        assert_close(np.asarray(grad), np.asarray(want[1]), size=10)
    sentence = r"shape \(5, 3\) and dtype float64, and `like` gives \(5, 2\)"
    with pytest.raises(ValueError, match=sentence):
        ngd_jax.tag(x, jnp.matmul, x, normal(3, 2))


def test_a_tagged_product_that_is_seen_counts_once():
    p, batch = {"w": normal(3, 2), "b": normal(2)}, (normal(N, 3), normal(N, 2))

    def plain(p, x, y):
        return square(x @ p["w"] + p["b"], y)

    def marked(p, x, y):
        own = x @ p["w"] + p["b"]
        return square(ngd_jax.tag(own, lambda x, w, b: x @ w + b, x, p["w"], p["b"]), y)

    same_records(marked, plain, p, batch)


def same_records(f, g, p, batch):
    """Values, gradients and records of two losses are the same."""
    assert ngd_jax.report(f, p, *batch) == ngd_jax.report(g, p, *batch)
    got, want = (jax.jit(ngd_jax.value_and_grad(h))(p, *batch) for h in (f, g))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(np.asarray(one), np.asarray(other), size=100)


@jax.custom_vjp
def penalised(w, x):
    return x @ w


def _penalised_vjp(kept, g):
    """Data's part, linear in the gradient, and a penalty that is not."""
    return kept[1].T @ g + 0.1 * kept[0], g @ kept[0].T


penalised.defvjp(lambda w, x: (x @ w, (w, x)), _penalised_vjp)


def test_a_backward_pass_of_its_own_is_kept_whole():
    """Gradients to the last bit, with a penalty that the rule adds; which no record has."""

    def through(product):
        def loss(p, x, y):
            z = product(p["u"], jnp.tanh(product(p["w"], x)))
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)), z

        return loss

    p, x = {"w": normal(3, 4), "u": normal(4, 3)}, normal(N, 3)
    options = {"has_aux": True, "fisher": "exact"}
    _, grads, records = jax.jit(ngd_jax.value_and_grad(through(penalised), **options))(p, x, LABELS)
    own = jax.jit(jax.grad(through(penalised), has_aux=True))(p, x, LABELS)[0]
    for name, grad in own.items():
        assert jnp.array_equal(grads[name], grad)
    plain = ngd_jax.value_and_grad(through(lambda w, x: x @ w), **options)
    want = jax.jit(plain)(p, x, LABELS)[2]
    for one, other in zip(jax.tree.leaves(records), jax.tree.leaves(want), strict=True):
        assert_close(np.asarray(one), np.asarray(other), size=100)


def test_a_bias_may_be_added_to_more_data_first():
    p, batch = {"w": normal(3, 2), "b": normal(2)}, (normal(N, 3), normal(N, 2))

    def last(p, x, y):
        return square(x @ p["w"] + x[:, :2] + p["b"], y)

    def first(p, x, y):
        return square((jnp.tanh(y) + p["b"]) + x @ p["w"], y - x[:, :2] + jnp.tanh(y))

    def read_twice(p, x, y):
        h = y + p["b"]
        return square(h + x @ p["w"], h)

    same_records(first, last, p, batch)
    assert ngd_jax.report(read_twice, p, *batch).uncovered == {"b": "used by add"}


ROWS, WHOLE = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()


def sharded(f, in_specs, out_specs):
    """A shard_map over one device."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_layer_in_shards_is_a_layer(tagged):
    """With its bias inside or outside, and also where a tag names it."""
    p = {"w": normal(3, 2), "b": normal(2)}
    batch = (normal(N, 3), normal(N, 2))

    def plain(p, x, y):
        return square(x @ p["w"] + p["b"], y)

    def inside(p, x, y):
        def loss(p, x, y):
            return jax.lax.pmean(plain(p, x, y), "d")

        return sharded(loss, (WHOLE, ROWS, ROWS), WHOLE)(p, x, y)

    def outside(p, x, y):
        z = sharded(jnp.matmul, (ROWS, WHOLE), ROWS)(x, p["w"]) + p["b"]
        if tagged:
            z = ngd_jax.tag(z, lambda x, w, b: x @ w + b, x, p["w"], p["b"])
        return square(z, y)

    same_records(outside if tagged else inside, plain, p, batch)
    same_records(outside, plain, p, batch)


@pytest.mark.parametrize("layers_around", [False, True])
def test_records_of_shards_are_of_the_whole_batch(layers_around):
    """Shapes on a mesh of two by tracing alone; loops over layers in the body or around it."""
    mesh = jax.sharding.AbstractMesh((2,), ("d",))
    p, x = {"w": normal(3, 4, 4)}, normal(2 * N, 4)

    def product(h, w):
        return jnp.tanh(h @ w)

    def layers(x, w, f=product):
        return jax.lax.scan(lambda h, w: (f(h, w), None), x, w)[0]

    shards = {"mesh": mesh, "in_specs": (ROWS, WHOLE), "out_specs": ROWS}

    def split(p, x):
        if layers_around:
            return jnp.mean(layers(x, p["w"], jax.shard_map(product, **shards)))
        return jnp.mean(jax.shard_map(layers, **shards)(x, p["w"]))

    def plain(p, x):
        return jnp.mean(layers(x, p["w"]))

    got, want = (jax.eval_shape(ngd_jax.value_and_grad(f), p, x) for f in (split, plain))
    assert len(want[2]) == 3
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


def inner_shards(x, w):
    rows = jax.sharding.PartitionSpec("m")
    return jax.shard_map(jnp.matmul, in_specs=(rows, WHOLE), out_specs=rows, axis_names={"m"})(x, w)


@pytest.mark.parametrize(
    ("why", "rows", "columns", "names", "f"),
    [
        ("which splits parameters", "d", "m", {"d", "m"}, jnp.matmul),
        ("over mesh axes that do not split the examples", "d", None, {"d", "m"}, jnp.matmul),
        ("which does not split the examples in one way", None, None, {"d"}, jnp.matmul),
        ("in another one", "d", None, {"d"}, inner_shards),
    ],
)
def test_shards_of_anything_else_are_told(why, rows, columns, names, f):
    mesh = jax.sharding.AbstractMesh((2, 2), ("d", "m"))
    specs = (jax.sharding.PartitionSpec(rows), jax.sharding.PartitionSpec(None, columns))
    options = {"mesh": mesh, "axis_names": names, "check_vma": False}

    def loss(w, x):
        out = jax.sharding.PartitionSpec(rows, columns)
        return jnp.sum(jax.shard_map(f, in_specs=specs, out_specs=out, **options)(x, w))

    uncovered = ngd_jax.report(loss, normal(3, 2), normal(N - 1, 3)).uncovered
    assert uncovered == {"params": f"used by shard_map, {why}"}


def once(h, w):
    return lax.fori_loop(0, jnp.asarray(h[0, 0] > 0, int), lambda _, h: h @ w, h)


def scrambled(x):
    return x.reshape(2, -1, 2).transpose(1, 0, 2)


def halves(f):
    """A shard_map over two devices."""
    mesh = jax.sharding.AbstractMesh((2,), ("d",))
    return jax.shard_map(f, mesh=mesh, in_specs=(ROWS, WHOLE), out_specs=ROWS)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (halves(lambda x, w: x.reshape(-1, 2, 2) @ w), None),
        (halves(lambda x, w: x.reshape(-1, 2) @ w), "unknown after shard_map"),
        (halves(lambda x, w: scrambled(x) @ w), "unknown after reshape"),
        (lambda x, w: halves(lambda x, _: scrambled(x))(x, w) @ w, "after reshape"),
        (lambda x, w: jnp.stack([x, x]).reshape(-1, 2) @ w, None),
        (lambda x, w: lax.map(jnp.tanh, x, batch_size=2).reshape(-1, 2) @ w, None),
        (lambda x, w: lax.map(jnp.tanh, x.reshape(-1, 2)) @ w, None),
        (lambda x, w: lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h), x.reshape(-1, 2)) @ w, None),
        (lambda x, w: jnp.cumsum(x.reshape(-1, 2), 1) @ w, None),
        (lambda x, w: jnp.cumsum(x.reshape(-1, 2), 0) @ w, "unknown after cumsum"),
        (lambda x, w: jnp.flip(x.reshape(-1, 2), 0) @ w, "unknown after rev"),
        (lambda x, w: x.reshape(-1, 2)[::2] @ w, "unknown after slice"),
        (lambda x, w: x.reshape(2, -1).T @ w, "order of the examples is unknown after reshape"),
        (lambda x, w: x.reshape(4, -1)[:2].T @ w, "unknown after reshape"),
        (lambda x, w: lax.map(lambda row: row @ w, x.reshape(-1, 2)), "examples share an axis"),
        (lambda x, w: once(x.reshape(-1, 2), w), "used by while"),
    ],
)
def test_the_order_of_the_examples_is_followed_or_refused(rows, why):
    """In six examples of two pairs each, by shapes alone."""
    report = ngd_jax.report(lambda w, x: jnp.sum(rows(x, w)), jnp.ones((2, 2)), jnp.ones((6, 4)))
    assert len(report.layers) == (why is None)
    assert why is None or why in report.uncovered["params"]


def test_a_branch_that_is_not_taken_leaves_zeros():
    def loss(p, x, y, taken):
        return square(lax.cond(taken, lambda h: h @ p["w"], lambda h: h[:, :2], x), y)

    f = jax.jit(ngd_jax.value_and_grad(loss))
    x, y = CASES["mlp"].batch
    taken, left_out = (f({"w": normal(3, 2)}, x, y, bool(k))[2]["w"] for k in (1, 0))
    assert_close(np.asarray(taken.a), np.asarray(x))
    assert bool(jnp.any(taken.g != 0))
    for one, other in zip(jax.tree.leaves(taken), jax.tree.leaves(left_out), strict=True):
        assert one.shape == other.shape
        assert not jnp.any(other)


def test_a_report_is_a_table_and_needs_no_numbers():
    case = CASES["shared"]
    shapes = jax.eval_shape(lambda: (case.params, *case.batch))
    text = str(ngd_jax.report(case.loss, *shapes))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "parameters", "kind", "block"]
    assert lines[3].split() == ["w", "w,", "b", "dense", "3x4"]
    assert lines[4].split()[:3] == ["-", "c", "-"]
    assert "follows its gradient" in lines[4]


def branching(p, x):
    return jnp.mean(x @ p["w"]) if len(x) == N else jnp.mean(jnp.tanh(x @ p["w"]))


def fixed(p, x):
    return jnp.mean(jnp.reshape(x, (N, 3)) @ p["w"])


def plain(p, x):
    return jnp.mean(x @ p["w"])


X = normal(N, 3)
W = {"w": normal(3, 2)}


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: ngd_jax.value_and_grad(plain, fisher="true"), ValueError, ["'true'", "'mc'"]),
        (
            lambda: ngd_jax.value_and_grad(plain, loss_reduction="none"),
            ValueError,
            ["'none'", "'sum'"],
        ),
        (
            lambda: ngd_jax.value_and_grad(plain, fisher="mc"),
            ValueError,
            ["(loss, outputs)", "has_aux=True"],
        ),
        (
            lambda: ngd_jax.value_and_grad(classify, has_aux=True, fisher="mc")(WEIGHTS, X, LABELS),
            ValueError,
            ["key is missing"],
        ),
        (
            lambda: ngd_jax.value_and_grad(plain)(W, X, key=jax.random.key(0)),
            ValueError,
            ["key is not used", "'empirical'"],
        ),
        (lambda: ngd_jax.value_and_grad(plain)(W), ValueError, ["no batch"]),
        (lambda: ngd_jax.value_and_grad(plain)(W, X[:0]), ValueError, ["batch is empty"]),
        (
            lambda: ngd_jax.value_and_grad(branching)(W, X),
            ValueError,
            ["something else for twice as many examples"],
        ),
        (
            lambda: ngd_jax.value_and_grad(fixed)(W, X),
            ValueError,
            ["10 examples in place of 5", "batch_argnums"],
        ),
        (
            lambda: ngd_jax.value_and_grad(plain)({"w": jnp.ones((3, 2), int)}, X),
            TypeError,
            ["'w'", "int64"],
        ),
        (
            lambda: ngd_jax.value_and_grad(lambda p, x: x @ p["w"])(W, X),
            ValueError,
            ["shape (5, 2)", "scalar"],
        ),
        (
            lambda: ngd_jax.value_and_grad(
                classify, has_aux=True, fisher="exact", likelihood=("gaussian", "gaussian")
            )(WEIGHTS, X, LABELS),
            ValueError,
            ["5 outputs and 2 likelihoods"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(call, error, parts):
    with pytest.raises(error) as raised:
        call()
    for part in parts:
        assert part in str(raised.value)


def test_a_layout_is_undone():
    x = jnp.arange(24).reshape(2, 3, 4)
    layout = Layout(0, x.shape).transposed((1, 2, 0)).reshaped((3, 8)).transposed((1, 0))
    assert layout.of(x).shape == layout.result == (8, 3)
    assert jnp.array_equal(layout.of(x), x.transpose(1, 2, 0).reshape(3, 8).T)
    assert jnp.array_equal(layout.back(layout.of(x)), x)


def test_the_notation_of_kinds():
    spec = ngd_jax.report(plain, W, X).layers[0].spec
    assert spec == ngd_core.LayerSpec("w", "dense", 3, 2, bias=False)
