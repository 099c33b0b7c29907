"""Models in plain JAX, with the layers that tracing has to find in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
from jax import lax

N = 5
NO_RULE = "custom_vjp_call, whose rule has no transpose"


class Case(NamedTuple):
    loss: Any
    params: Any
    batch: tuple[Any, ...]
    layers: dict[str, str]
    uncovered: dict[str, str]


def normal(*shape):
    r = np.random.default_rng(sum((k + 2) * n for k, n in enumerate(shape)))
    return jnp.asarray(0.6 * r.standard_normal(shape))


def tokens(*shape):
    return jnp.asarray(np.random.default_rng(3).integers(0, 5, shape))


def square(z, y):
    return jnp.mean(jnp.sum((z - y) ** 2, axis=tuple(range(1, z.ndim))))


def mlp(p, x, y):
    """Functions within functions, and a weight the other way round."""
    h = jax.nn.relu(x @ p["w1"] + p["b1"])
    z = jax.jit(lambda h: jax.nn.gelu(h) @ p["w2"].T)(h) + p["b2"]
    return square(z, y)


def per_example(p, x, y):
    def one(x, y):
        h = jnp.tanh(p["w1"] @ x + p["b1"])
        return jnp.sum((p["w2"] @ h + p["b2"] - y) ** 2)

    return jnp.mean(jax.vmap(one)(x, y))


def loop_over_examples(p, x, y):
    return jnp.mean(
        lax.map(lambda xy: jnp.sum((jnp.tanh(xy[0] @ p["w"] + p["b"]) - xy[1]) ** 2), (x, y))
    )


def heads(p, x, y):
    """Several output and input axes; a weight with one matrix for each head."""
    h = jnp.einsum("ntd,dhk->nthk", x, p["in"]) + p["b"]
    h = jnp.einsum("nthk,hkj->nthj", jnp.tanh(h), p["each"])
    return square(jnp.einsum("nthj,hjo->nto", jnp.tanh(h), p["out"]) + p["c"], y)


def images(p, x, y):
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["k1"], (1, 2), "SAME", dimension_numbers=numbers) + p["b1"]
    h = lax.conv_general_dilated(
        jnp.tanh(h),
        p["k2"],
        (1, 1),
        [(1, 0), (2, 1)],
        rhs_dilation=(1, 2),
        feature_group_count=2,
        dimension_numbers=numbers,
    )
    return square(jnp.reshape(h, (len(x), -1)) @ p["w"], y)


def signals(p, x, y):
    """One axis, one example at a time; then transposed."""
    h = jax.vmap(lambda x: lax.conv_general_dilated(x[None], p["k"], (1,), [(1, 1)])[0] + p["b"])(x)
    h = lax.conv_transpose(
        jnp.tanh(h), p["t"], (2,), "SAME", dimension_numbers=("NCH", "HIO", "NCH")
    )
    return square(jnp.sum(h, -1), y)


def volumes_used_twice(p, x, y):
    def once(x):
        h = lax.conv_general_dilated(x, p["k"], (1, 1, 1), [(0, 1), (0, 0), (1, 0)])
        return jnp.tanh(h + jnp.reshape(p["b"], (1, -1, 1, 1, 1)))

    return square(jnp.sum(once(once(x)), (2, 3, 4)), y)


def grouped_volumes(p, x, y):
    """Three axes in groups, then transposed in groups, and one channel a group used twice."""
    h = lax.conv_general_dilated(x, p["k"], (1, 2, 1), "SAME", feature_group_count=2)
    h = jnp.tanh(h + jnp.reshape(p["b"], (1, -1, 1, 1, 1)))
    h = jnp.sum(h, (3, 4))
    h = lax.conv_general_dilated(h, p["t"], (1,), [(1, 1)], (2,), feature_group_count=2)
    for _ in range(2):
        h = jnp.tanh(lax.conv_general_dilated(h, p["d"], (1,), "SAME", feature_group_count=4))
    return square(jnp.sum(h, 2), y)


def folded(p, x, y):
    """Positions behind the examples on one axis, in front of them, and on both sides of them.

    Parameters have the names that Haiku gives them.
    """
    n, t, d = x.shape
    rows = jnp.tanh(jnp.reshape(x, (-1, d)) @ p["net/~/linear"]["w"] + p["net/~/linear"]["b"])
    u = jax.nn.relu(jnp.swapaxes(jnp.reshape(rows, (n, t, 2, 2)), 0, 1))
    u = jnp.reshape(u, (t * n, 4)) @ p["net/~/linear_1"]["w"] + p["net/~/linear_1"]["b"]
    u = jax.nn.softmax(u * p["scale"], axis=-1)
    u = jnp.reshape(jnp.reshape(u, (t * n * 2, 2)) @ p["middle"]["w"], (t, n, 2, 2))
    h = jnp.reshape(jnp.moveaxis(u, 2, 1), (t * 2 * n, 2))
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["stack"])
    h = jnp.sum(jnp.reshape(h, (t, 2, n, 2)), 1)
    return square(h, jnp.swapaxes(y, 0, 1)) * t / n


def frames(p, x, t, y):
    """Images and tokens, a frame each, folded; pooled, attended and joined in pairs."""
    n, k, *rest = x.shape
    numbers = ("NHWC", "HWIO", "NHWC")
    h = jnp.reshape(x, (n * k, *rest))
    h = lax.conv_general_dilated(h, p["k"], (1, 1), "SAME", dimension_numbers=numbers) + p["b"]
    h = lax.reduce_window(jax.nn.silu(h), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    h = jnp.sum(h, (1, 2))[:, jnp.asarray([1, 0])] + p["e"][jnp.ravel(t)]
    h = jnp.concatenate([h, jnp.flip(h, 1)])
    h = jax.lax.cond(jnp.sum(x) > 0, jnp.tanh, jnp.sin, h @ p["w"])
    pairs = jnp.reshape(h, (2, n, k, 2))
    score = jax.nn.softmax(jnp.einsum("pnid,pnjd->pnij", pairs, pairs))
    h = jnp.reshape(jnp.einsum("pnij,pnjd->pnid", score, pairs), (2, n * k, 2))
    return square(jnp.swapaxes(h @ p["u"], 0, 1), jnp.reshape(y, (n * k, 2, 2))) * k


def disordered(p, x, y):
    """Rows of examples and positions that are torn apart, or in an order that is not followed."""
    n, t, d = x.shape
    h = jnp.sort(jnp.reshape(x, (n * t, d)), 0) @ p["sorted"]
    u = jnp.reshape(jnp.reshape(x, (t, n, d)) @ p["torn"], (n * t, d))
    one, two = (jnp.reshape(v, (n * t, d)) for v in (x, jnp.swapaxes(x, 0, 1)))
    v = jnp.concatenate([one, two]) @ p["both"]
    z = jnp.reshape(h + u + v[: n * t] + (one + two) @ p["added"], (n, t, d))
    return square(z @ p["apart"], y)


@jax.custom_jvp
def layer(w, b, x, k):
    return jnp.tanh(x @ w + b) * k


@layer.defjvp
def _layer_jvp(primals, tangents):
    (w, b, x, k), (dw, db, dx, _) = primals, tangents
    z = jnp.tanh(x @ w + b)
    slope = jnp.minimum(1 - z * z, 0.5)
    return z * k, 3 * slope * (x @ dw + db + dx @ w) * k


@jax.custom_jvp
def product(w, x):
    return x @ w


product.defjvps(lambda dw, _z, _w, x: 2 * (x @ dw), lambda dx, _z, w, _x: dx @ w)


def rules(p, x, y):
    """Derivatives that are not the function's, in a loop and under vmap; and marks."""

    def one(x):
        return ngd_jax.tag(0.5 * product(p["tagged"], x[None])[0], jnp.matmul, x, p["tagged"])

    h = jax.jit(layer)(p["w"], p["b"], x, 2)
    h, _ = lax.scan(lambda h, w: (jax.checkpoint(layer)(w, p["c"], h, 1), None), h, p["stack"])
    h = jax.vmap(lambda x: product(p["plain"], x[None])[0])(h) + p["d"]
    h = jax.nn.relu(h) * jax.nn.silu(p["activated"])
    h = jax.nn.logsumexp(jnp.stack([h, jax.nn.gelu(h)]), 0)
    z = jax.vmap(one)(h) + doubled(p["ruled"], h)
    z = ngd_jax.tag(z @ p["m"] + p["n"], lambda z, m, n: z @ m + n, z, p["m"], p["n"])
    return square(z, y)


def branches(p, x, y):
    """Layers that are left out, chosen from, chosen in a loop, and used in two branches."""
    off, on = jnp.sum(p["w"]) > 1e9, jnp.sum(p["w"]) < 1e9
    h = lax.cond(on, lambda h: jnp.tanh(h @ p["w"] + p["b"]), lambda h: h, x)
    h = lax.cond(off, lambda h: h @ p["idle"], lambda h: h @ p["used"], h)
    h = lax.cond(on, lambda h: h @ p["both"], lambda h: 2 * h @ p["both"], h)

    def step(h, w):
        h = lax.switch(w[1], [lambda h: h, lambda h: jnp.tanh(h @ w[0]), jnp.sin], h)
        return lax.cond(w[1] == 0, lambda h: h @ p["looped"], lambda h: h, h), None

    h, _ = lax.scan(step, h, (p["stack"], jnp.arange(3)))
    return square(h, y)


def language(p, t, y):
    """Rows looked up in three ways, a table used twice."""
    h = p["e"][t] + jnp.take(p["e"], t + 1, axis=0)
    h = h + jax.vmap(jax.vmap(lambda k: p["f"][k]))(t)
    return square(jnp.sum(jnp.tanh(h), 1) @ p["w"], y)


def tied(p, t, y):
    return square(jnp.sum(jnp.tanh(p["e"][t] @ p["w"]), 1) @ p["e"].T, y)


def tied_transposed(p, t, y):
    """A table turned around for look-ups, tied twice, with a bias of its own."""
    h = p["e"].T[t[:, 0]] + jnp.take(p["e"].T, t[:, 1], axis=0)
    h = h + jnp.tanh(h @ p["e"]) @ p["w"]
    return square(h @ p["e"] + p["b"], y)


def norms(p, x, y):
    """Scales in front of data and behind it, stacked, used twice; and a product that is none."""
    mean = jnp.mean(x, -1, keepdims=True)
    root = jax.lax.rsqrt(jnp.mean((x - mean) ** 2, -1, keepdims=True) + 0.1)
    h = (x - mean) * (root * p["layer"]) + p["b"]
    h = p["rms"] * jnp.tanh(h * p["rms"])
    h = jnp.swapaxes(jnp.swapaxes(h, 1, 2) * p["places"].T, 1, 2) * p["gain"]
    h, _ = lax.scan(lambda h, s: (jnp.tanh(h * s[0] + s[1]), None), h, (p["stack"], p["shifts"]))
    return p["rate"] * square(h, y)


def deep(p, x, y):
    """Layers stacked in one array, rematerialised."""

    @jax.checkpoint
    def layer(h, w):
        return jnp.tanh(h @ w["w"] + w["b"])

    h, _ = lax.scan(lambda h, w: (layer(h, w), None), x, p["stack"])
    return square(h @ p["out"], y)


def recurrent(p, x, y):
    def cell(h, x):
        h = jnp.tanh(h @ p["h"] + x @ p["x"] + p["b"])
        return h, h

    start = jnp.zeros((len(x), 4))
    _, hs = lax.scan(cell, start, jnp.swapaxes(x, 0, 1), reverse=True)
    return square(jnp.swapaxes(hs, 0, 1) @ p["out"], y)


def shared(p, x, y):
    """One layer twice, and one bias on two layers."""
    h = jnp.tanh(x @ p["w"] + p["b"])
    h = jnp.tanh(h[:, None, :] @ p["w"] + p["b"])[:, 0]
    return square(h @ p["u"] + p["c"] + h @ p["v"] + p["c"], y)


def branched(p, x, y):
    """A result that is read before its bias is added, and one that is read behind it alone."""
    z = x @ p["w"]
    h = jnp.tanh(z) + (z + p["b"])
    u = h @ p["u"] + p["c"]
    return square(u * u + x[:, :2], y)


@jax.custom_vjp
def doubled(w, x):
    return x @ w


doubled.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (2 * r[1].T @ g, g @ r[0].T))


@jax.custom_vjp
def kernel(w, x):
    return x @ w


def _kernel_vjp(kept, g):
    """No linear map, so that nothing is read from it."""
    g = jnp.clip(g, -1e9, 1e9)
    return kept[1].T @ g, g @ kept[0].T


kernel.defvjp(lambda w, x: (x @ w, (w, x)), _kernel_vjp)


def tags(p, x, y):
    """Marks under vmap, with a bias, in a loop, of a use twice, and of one of two uses."""

    def one(x):
        h = kernel(p["w"], x[None])[0] + p["b"]
        return jnp.tanh(ngd_jax.tag(h, lambda x, w, b: x @ w + b, x, p["w"], p["b"]))

    def layer(h, w):
        return jnp.tanh(ngd_jax.tag(kernel(w, h), jnp.matmul, h, w)), None

    h, _ = lax.scan(layer, jax.vmap(one)(x), p["stack"])
    h = jnp.tanh(kernel(p["half"], h))
    h = ngd_jax.tag(kernel(p["half"], h), jnp.matmul, h, p["half"])
    g = ngd_jax.tag(kernel(p["turned"], h), lambda h, w: (w.T @ h.T).T, h, p["turned"])
    return square(ngd_jax.tag(g, lambda h, w: jnp.tanh(h @ w), h, p["sum"]), y)


@jax.custom_vjp
def backward_layer(w, b, x, k):
    return jnp.tanh(x @ w + b) * k


def _backward_layer_vjp(kept, g):
    """Three times the slope, bounded, as no derivative of the function is."""
    w, x, z, k = kept
    g = 3 * g * jnp.minimum(1 - z * z, 0.5) * k
    return x.T @ g, jnp.sum(g, 0), g @ w.T, None


backward_layer.defvjp(
    lambda w, b, x, k: ((z := jnp.tanh(x @ w + b)) * k, (w, x, z, k)), _backward_layer_vjp
)


@jax.custom_vjp
def pictures(k, x):
    return lax.conv_general_dilated(x, k, (1, 1), "SAME")


def _pictures_vjp(kept, g):
    return jax.vjp(lambda k, x: lax.conv_general_dilated(x, k, (1, 1), "SAME"), *kept)[1](2 * g)


pictures.defvjp(lambda k, x: (pictures(k, x), (k, x)), _pictures_vjp)


@jax.custom_vjp
def looked_up(table, t):
    return table[t]


looked_up.defvjp(
    lambda table, t: (table[t], (jnp.zeros_like(table), t)),
    lambda kept, g: (kept[0].at[kept[1]].add(2 * g), None),
)


@jax.custom_vjp
def rounded(w):
    return jnp.round(8 * w) / 8


rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))


@jax.custom_vjp
def bounded(x):
    return x


bounded.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e9, 1e9),))


@jax.custom_vjp
def scaled(x):
    return x


scaled.defvjp(lambda x: (x, None), lambda _, g: (0.5 * g,))


def backward_rules(p, x, t, y):
    """Backward passes of their own: in loops, under vmap, around data and parameters alone."""
    h = jax.jit(backward_layer)(p["w"], p["b"], bounded(x), 2)
    h, _ = lax.scan(
        lambda h, w: (jax.checkpoint(backward_layer)(w[0], w[1], h, 1), None),
        h,
        (p["stack"], p["shifts"]),
    )
    h = h + jax.vmap(lambda h: doubled(p["each"], h[None])[0])(h)
    h = scaled(h @ rounded(p["rounded"])) + rounded(p["shift"])
    h = bounded(h @ p["plain"] + p["c"]) + looked_up(p["table"], t)
    k = jnp.reshape(h, (len(x), 1, 1, -1))
    h = jnp.tanh(jnp.sum(pictures(p["image"], k), (1, 2)))
    return square(h @ bounded(p["bounded"]) + kernel(p["kernel"], h), y)


def loops(p, x, y):
    """A count that is known is a scan; a loop that nothing differentiates is passed over."""
    h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["w"] + p["b"]), x)
    h = lax.fori_loop(0, 2, lambda k, h: jnp.tanh(h @ p["stack"][k]), h)
    largest = lax.while_loop(
        lambda state: jnp.sum(state @ p["v"]) < 1e3,
        lambda state: 2 * jnp.abs(state @ lax.stop_gradient(p["u"])) + 1,
        lax.stop_gradient(h),
    )
    count = lax.while_loop(lambda k: k < jnp.sum(h > 0), lambda k: k + 1, 0)
    h = h / jnp.max(largest, axis=1, keepdims=True) * (1 + 0 * count)
    return square(h @ p["u"] + lax.stop_gradient(p["still"]), y)


def others(p, x, y):
    """What is no layer: a rule of its own, a scale, a state that is carried, and others."""
    h = jax.nn.silu(kernel(p["ruled"], x)) * p["scale"]
    h, _ = lax.scan(lambda h, _: (jnp.tanh(h), None), h + 0 * p["idle"], None, 2)
    start = jnp.broadcast_to(p["carried"], h.shape)
    g, _ = lax.scan(lambda g, _: (jnp.tanh(g + h), None), start, None, 2)
    w = p["normed"] / jnp.sqrt(jnp.sum(p["normed"] ** 2))
    z = h @ p["w"] + h @ w + jnp.sum(g, -1, keepdims=True)
    return square(jnp.reshape(jnp.reshape(z, (-1, 1)) @ p["folded"], z.shape), y)


CASES = {
    "mlp": Case(
        mlp,
        {"w1": normal(3, 4), "b1": normal(4), "w2": normal(2, 4), "b2": normal(2)},
        (normal(N, 3), normal(N, 2)),
        {"w1": "dense 4x4", "w2": "dense 2x5"},
        {},
    ),
    "per_example": Case(
        per_example,
        {"w1": normal(4, 3), "b1": normal(4), "w2": normal(2, 4), "b2": normal(2)},
        (normal(N, 3), normal(N, 2)),
        {"w1": "dense 4x4", "w2": "dense 2x5"},
        {},
    ),
    "loop_over_examples": Case(
        loop_over_examples,
        {"w": normal(3, 2), "b": normal(2)},
        (normal(N, 3), normal(N, 2)),
        {"w": "dense 2x4"},
        {},
    ),
    "heads": Case(
        heads,
        {
            "in": normal(3, 2, 4),
            "b": normal(2, 4),
            "each": normal(2, 4, 3),
            "out": normal(2, 3, 2),
            "c": normal(2),
        },
        (normal(N, 6, 3), normal(N, 6, 2)),
        {"each[0]": "dense 3x4", "each[1]": "dense 3x4", "in": "dense 8x4", "out": "dense 2x7"},
        {},
    ),
    "images": Case(
        images,
        {"k1": normal(2, 2, 3, 4), "b1": normal(4), "k2": normal(2, 2, 2, 6), "w": normal(96, 2)},
        (normal(N, 4, 5, 3), normal(N, 2)),
        {"k1": "conv2d 4x13", "k2": "conv2d 2x3x8", "w": "dense 2x96"},
        {},
    ),
    "signals": Case(
        signals,
        {"k": normal(4, 3, 3), "b": normal(4, 1), "t": normal(3, 4, 2)},
        (normal(N, 3, 6), normal(N, 2)),
        {"k": "conv2d 4x10", "t": "dense 2x12"},
        {},
    ),
    "volumes_used_twice": Case(
        volumes_used_twice,
        {"k": normal(2, 2, 2, 1, 2), "b": normal(2)},
        (normal(N, 2, 3, 2, 3), normal(N, 2)),
        {"k": "dense 2x9"},
        {},
    ),
    "language": Case(
        language,
        {"e": normal(7, 4), "f": normal(7, 4), "w": normal(4, 2)},
        (tokens(N, 3), normal(N, 2)),
        {"e": "embedding 4x7", "f": "embedding 4x7", "w": "dense 2x4"},
        {},
    ),
    "tied": Case(
        tied,
        {"e": normal(7, 4), "w": normal(4, 4)},
        (tokens(N, 3), normal(N, 7)),
        {"e": "embedding 4x7", "w": "dense 4x4"},
        {},
    ),
    "tied_transposed": Case(
        tied_transposed,
        {"e": normal(4, 7), "w": normal(7, 4), "b": normal(7)},
        (tokens(N, 2), normal(N, 7)),
        {"e": "embedding 4x7", "w": "dense 4x7"},
        {"b": "added to a layer that does not always have it"},
    ),
    "norms": Case(
        norms,
        {
            "layer": normal(4),
            "b": normal(4),
            "rms": normal(4),
            "places": normal(3, 4),
            "gain": normal(),
            "stack": normal(2, 4),
            "shifts": normal(2, 4),
            "rate": normal(),
        },
        (normal(N, 3, 4), normal(N, 3, 4)),
        {
            "gain": "scale 1x1x1",
            "layer": "scale 4x1x2",
            "places": "scale 12x1x1",
            "rms": "scale 4x1x1",
            "stack[0]": "scale 4x1x2",
            "stack[1]": "scale 4x1x2",
        },
        {"rate": "used by mul: its data has no axis of the examples"},
    ),
    "deep": Case(
        deep,
        {"stack": {"w": normal(3, 4, 4), "b": normal(3, 4)}, "out": normal(4, 2)},
        (normal(N, 4), normal(N, 2)),
        {"out": "dense 2x4", **{f"stack/w[{k}]": "dense 4x5" for k in range(3)}},
        {},
    ),
    "recurrent": Case(
        recurrent,
        {"h": normal(4, 4), "x": normal(3, 4), "b": normal(4), "out": normal(4, 2)},
        (normal(N, 6, 3), normal(N, 6, 2)),
        {"h": "dense 4x5", "out": "dense 2x4", "x": "dense 4x3"},
        {},
    ),
    "shared": Case(
        shared,
        {"w": normal(3, 3), "b": normal(3), "u": normal(3, 2), "v": normal(3, 2), "c": normal(2)},
        (normal(N, 3), normal(N, 2)),
        {"u": "dense 2x3", "v": "dense 2x3", "w": "dense 3x4"},
        {"c": "added to a layer that does not always have it"},
    ),
    "branched": Case(
        branched,
        {"w": normal(3, 4), "b": normal(4), "u": normal(4, 2), "c": normal(2)},
        (normal(N, 3), normal(N, 2)),
        {"u": "dense 2x5", "w": "dense 4x3"},
        {"b": "used by add"},
    ),
    "tags": Case(
        tags,
        {
            "w": normal(3, 3),
            "b": normal(3),
            "stack": normal(2, 3, 3),
            "half": normal(3, 3),
            "turned": normal(3, 3),
            "sum": normal(3, 3),
        },
        (normal(N, 3), normal(N, 3)),
        {"stack[0]": "dense 3x3", "stack[1]": "dense 3x3", "w": "dense 3x4"},
        {
            "half": f"used by {NO_RULE}",
            "turned": "used by a tag that is no single map of data",
            "sum": "used by a tag that is no single map of data",
        },
    ),
    "grouped_volumes": Case(
        grouped_volumes,
        {
            "k": normal(4, 1, 1, 2, 3),
            "b": normal(4),
            "t": normal(4, 2, 2),
            "d": normal(4, 1, 2),
        },
        (normal(N, 2, 3, 2, 3), normal(N, 4)),
        {"d": "conv2d 4x1x2", "k": "conv2d 2x2x7", "t": "conv2d 2x2x4"},
        {},
    ),
    "folded": Case(
        folded,
        {
            "net/~/linear": {"w": normal(3, 4), "b": normal(4)},
            "net/~/linear_1": {"w": normal(4, 4), "b": normal(4)},
            "scale": normal(4),
            "middle": {"w": normal(2, 2)},
            "stack": normal(2, 2, 2),
        },
        (normal(N, 3, 3), normal(N, 3, 2)),
        {
            "net/~/linear/w": "dense 4x4",
            "net/~/linear_1/w": "dense 4x5",
            "middle/w": "dense 2x2",
            "scale": "scale 4x1x1",
            "stack[0]": "dense 2x2",
            "stack[1]": "dense 2x2",
        },
        {},
    ),
    "frames": Case(
        frames,
        {
            "k": normal(2, 2, 1, 2),
            "b": normal(2),
            "e": normal(5, 2),
            "w": normal(2, 2),
            "u": normal(2, 2),
        },
        (normal(N, 3, 2, 2, 1), tokens(N, 3), normal(N, 3, 2, 2)),
        {"e": "embedding 2x5", "k": "dense 2x5", "u": "dense 2x2", "w": "dense 2x2"},
        {},
    ),
    "disordered": Case(
        disordered,
        {k: normal(2, 2) for k in ("sorted", "torn", "both", "added", "apart")},
        (normal(N, 3, 2), normal(N, 3, 2)),
        {},
        {
            name: f"used by dot_general: the order of the examples is unknown after {by}"
            for name, by in (
                ("sorted", "sort"),
                ("torn", "reshape"),
                ("both", "concatenate"),
                ("added", "add"),
                ("apart", "sort"),
            )
        },
    ),
    "rules": Case(
        rules,
        {
            "w": normal(3, 3),
            "b": normal(3),
            "c": normal(3),
            "stack": normal(2, 3, 3),
            "plain": normal(3, 3),
            "d": normal(3),
            "tagged": normal(3, 3),
            "activated": normal(3),
            "ruled": normal(3, 3),
            "m": normal(3, 3),
            "n": normal(3),
        },
        (normal(N, 3), normal(N, 3)),
        {
            "m": "dense 3x4",
            "plain": "dense 3x3",
            "ruled": "dense 3x3",
            "stack[0]": "dense 3x3",
            "stack[1]": "dense 3x3",
            "tagged": "dense 3x3",
            "w": "dense 3x4",
        },
        {"activated": "used by mul", "c": "used by add", "d": "used by add"},
    ),
    "branches": Case(
        branches,
        {
            "w": normal(3, 3),
            "b": normal(3),
            "idle": normal(3, 3),
            "used": normal(3, 3),
            "both": normal(3, 3),
            "stack": normal(3, 3, 3),
            "looped": normal(3, 3),
        },
        (normal(N, 3), normal(N, 3)),
        {
            "idle": "dense 3x3",
            "stack[0]": "dense 3x3",
            "stack[1]": "dense 3x3",
            "stack[2]": "dense 3x3",
            "used": "dense 3x3",
            "w": "dense 3x4",
        },
        dict.fromkeys(
            ("both", "looped"), "it is used in a branch of cond, and elsewhere or in a loop"
        ),
    ),
    "backward_rules": Case(
        backward_rules,
        {
            "w": normal(3, 3),
            "b": normal(3),
            "stack": normal(2, 3, 3),
            "shifts": normal(2, 3),
            "each": normal(3, 3),
            "rounded": normal(3, 3),
            "shift": normal(3),
            "plain": normal(3, 3),
            "c": normal(3),
            "table": normal(5, 3),
            "image": normal(3, 1, 1, 2),
            "bounded": normal(3, 3),
            "kernel": normal(3, 3),
        },
        (normal(N, 3), tokens(N), normal(N, 3)),
        {
            "each": "dense 3x3",
            "image": "conv2d 3x2",
            "plain": "dense 3x4",
            "rounded": "dense 3x3",
            "stack[0]": "dense 3x4",
            "stack[1]": "dense 3x4",
            "table": "embedding 3x5",
            "w": "dense 3x4",
        },
        {
            "bounded": "used by dot_general",
            "kernel": f"used by {NO_RULE}",
            "shift": "used by add",
        },
    ),
    "loops": Case(
        loops,
        {
            "w": normal(3, 3),
            "b": normal(3),
            "stack": normal(2, 3, 3),
            "u": normal(3, 3),
            "v": normal(3, 3),
            "still": normal(3),
        },
        (normal(N, 3), normal(N, 3)),
        {"u": "dense 3x3", "w": "dense 3x4"},
        {
            "stack": "used by dynamic_slice",
            "still": "used by stop_gradient, through which no gradient goes",
            "v": "used by while, through which no gradient goes",
        },
    ),
    "others": Case(
        others,
        {
            "ruled": normal(3, 3),
            "scale": normal(3),
            "idle": normal(3),
            "carried": normal(3),
            "normed": normal(3, 2),
            "w": normal(3, 2),
            "folded": normal(1, 1),
        },
        (normal(N, 3), normal(N, 2)),
        {"folded": "dense 1x1", "scale": "scale 3x1x1", "w": "dense 2x3"},
        {
            "ruled": f"used by {NO_RULE}",
            "idle": "used by add",
            "carried": "used by scan, as what it carries",
            "normed": "used by dot_general",
        },
    ),
}
