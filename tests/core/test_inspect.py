"""`ngd inspect`: its numbers are those of `ngd_core.analysis`, and its page tells them to all."""

import itertools
import json
import math
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ngd_core import FNGD, KFAC, SNGD, SOFIM, Hyper, analysis, losses, nn, state
from ngd_core.lab import compare, data, inspection, style, svg, weights
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.cli import main
from ngd_core.lab.inspect import NUMBERS, PAGE
from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.page import page
from ngd_core.testing import assert_close

ROOT = Path(__file__).parents[2]
EXAMPLES, DAMPING, CLASSES = 12, 0.02, 3
LAYERS = ["conv1", "conv2", "dense"]
PICTURES = 1 + len(LAYERS) + (1 + len(LAYERS)) + 2 + 1
"""Layers, units of each, spectra of all and of each, two of the dimension, agreement."""


def ngd(words, *more):
    """Run the command as a shell would hand it over."""
    return main([*shlex.split(words), *map(str, more)])


def network(source, model="cnn"):
    """Network, values in float64, and the examples that are looked at."""
    found = data.load(str(source))
    net, params = compare.network(model, found, BACKENDS["numpy"](), "numpy", 0)
    params = {name: x.astype("float64") for name, x in params.items()}
    return net, params, found.x_train[:EXAMPLES].astype("float64"), found.y_train[:EXAMPLES]


def moved(params):
    """Other values than the initial ones, biases among them."""
    rng = np.random.default_rng(7)
    return {name: x + 0.3 * rng.standard_normal(x.shape) for name, x in params.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, weights for it, and what was seen of them."""
    home = tmp_path_factory.mktemp("inspect")
    rng = np.random.default_rng(0)
    np.savez(
        home / "set & <b>.npz",
        x_train=rng.random((20, 6, 5)),
        y_train=np.arange(20) % CLASSES,
        x_test=rng.random((4, 6, 5)),
        y_test=np.arange(4) % CLASSES,
    )
    net, params, _, _ = network(home / "set & <b>.npz")
    weights.save(home / "trained.safetensors", weights.named(net, moved(params)))
    assert inspected(home, home / "out") == 0
    return home


def inspected(home, out, *more, trained="trained.safetensors"):
    words = ["inspect", "--model", "cnn", "--data", home / "set & <b>.npz"]
    words += ["--weights", home / trained, "--examples", EXAMPLES, "--damping", DAMPING]
    return main([str(word) for word in (*words, "--out", out, *more)])


def numbers(out):
    return json.loads((out / NUMBERS).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(folder):
    return inspection.from_json(numbers(folder / "out"))


@pytest.fixture(scope="module")
def passes(folder):
    """Network, values, records of the exact Fisher, and of the labels with their gradients."""
    net, params, x, y = network(folder / "set & <b>.npz")
    params = moved(params)
    outputs, tape = nn.forward(net, params, x)
    vectors = losses.fisher_vectors("exact", losses.categorical, outputs)
    exact = nn.backward(net, params, tape, vectors, grads=False).records
    back = nn.backward(net, params, tape, losses.categorical.gradient(outputs, y))
    grads = {spec: back.grads[spec.name] for spec in exact}
    return outputs, y, exact, back.records, grads


# Numbers

MADE = {
    "kfac": KFAC(),
    "sngd": SNGD(),
    "fngd": FNGD(batch_size=EXAMPLES),
    "sofim": SOFIM(rho=None),
}


def test_every_figure_of_a_layer_is_that_of_the_analysis(found, passes):
    _, _, exact, _, _ = passes
    assert list(found.layers) == LAYERS
    size = CLASSES * EXAMPLES
    for spec, record in exact.items():
        layer, alone = found.layers[spec.name], {spec: record}
        values = analysis.eigenvalues(alone)
        assert layer.parameters == math.prod(spec.block_shape)
        assert_close(layer.information, float(analysis.trace(alone)), size=size)
        assert_close(layer.units, analysis.unit_information(alone)[spec], size=size)
        assert_close(layer.eigenvalues, values, size=size)
        dimension = analysis.effective_dimension(values, DAMPING)
        assert_close(layer.effective_dimension, float(dimension), size=size)
        assert_close(sum(layer.units), layer.information, size=size)


def test_all_layers_together_have_the_joint_fisher(found, passes):
    _, _, exact, _, _ = passes
    values, size = analysis.eigenvalues(exact), CLASSES * EXAMPLES
    assert found.all.parameters == sum(layer.parameters for layer in found.layers.values())
    assert_close(found.all.information, float(analysis.trace(exact)), size=size)
    assert_close(found.all.eigenvalues, values, size=size)
    for damping, dimension in zip(found.dampings, found.dimensions, strict=True):
        assert_close(dimension, float(analysis.effective_dimension(values, damping)), size=size)
    middle = found.dampings.index(min(found.dampings, key=lambda x: abs(x - DAMPING)))
    assert_close(found.dimensions[middle], found.all.effective_dimension, size=size, kappa=10)


def test_loss_and_accuracy_are_of_the_examples(found, passes):
    outputs, y, *_ = passes
    assert_close(found.loss, losses.categorical.value(outputs, y).mean(), size=EXAMPLES)
    assert found.accuracy == (outputs.argmax(-1) == y).mean()


def test_the_exact_natural_gradient_agrees_with_itself(found):
    exact = found.methods[inspection.EXACT]
    assert_close(exact.cosine, 1.0)
    assert_close(exact.decrease, 1.0)
    assert exact.relative_error == 0.0
    assert all(0 <= b.decrease <= 1 for b in found.methods.values() if b.decrease is not None)


def test_layers_alone_are_compared_with_the_joint_direction(found, passes):
    _, _, exact, _, grads = passes
    alone = {
        spec: analysis.natural_gradient({spec: exact[spec]}, {spec: g}, DAMPING)[spec]
        for spec, g in grads.items()
    }
    want = analysis.agreement(alone, grads, exact, DAMPING)
    got = found.methods[inspection.BLOCKS]
    assert 0.1 < got.decrease < 0.999
    assert_close((got.cosine, got.relative_error, got.decrease), want, kappa=1e4)


@pytest.mark.parametrize("method", ["kfac", "sngd", "fngd", "sofim", "sgd"])
def test_a_method_agrees_as_the_analysis_says(found, passes, method):
    _, _, exact, labels, grads = passes
    own = {"kfac": DAMPING, "sgd": None}.get(method, METHODS[method].damping)
    entry = METHODS[method]
    if entry.curvature is None:
        want = analysis.agreement(grads, grads, exact, DAMPING)
    else:
        seen = labels if method in ("fngd", "sofim") else exact
        want = analysis.method_agreement(
            MADE[method], seen, grads, Hyper(own), exact_records=exact, damping=DAMPING
        )
    got = found.methods[entry.title]
    assert got.damping == own
    assert_close((got.cosine, got.relative_error, got.decrease), want, kappa=1e6)


def test_coverage_says_what_a_method_knows(found):
    total = found.all.parameters
    for name, entry in METHODS.items():
        beside = found.methods[entry.title]
        if name == "tridiagonal":
            assert "does not take all layers" in beside.refused
            assert beside.decrease is None
            continue
        assert beside.refused is None
        assert beside.covered == (None if name in ("sofim", "sgd", "adam") else total)
        assert beside.uncovered == {}


def test_numbers_go_to_a_file_and_back(folder, found):
    again = json.loads(json.dumps(inspection.as_json(found), allow_nan=False))
    assert inspection.from_json(again) == found
    assert again == numbers(folder / "out")
    assert page(found) == (folder / "out" / PAGE).read_text(encoding="utf-8")


def test_two_inspections_give_equal_files(folder):
    before = {name: (folder / "out" / name).read_bytes() for name in (NUMBERS, PAGE)}
    assert inspected(folder, folder / "out", "--overwrite") == 0
    assert {name: (folder / "out" / name).read_bytes() for name in before} == before
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(before)


def test_the_documentation_shows_what_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/inspect.md").read_text(encoding="utf-8")
    words, shown = re.match(r"(?s).*?```sh\nngd (.*?)\n```\n\n```text\n(.*?)```", text).groups()
    assert ngd(words) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    told = [line for line in lines if not line.startswith(("Page: ", "Numbers: ", "Again: "))]
    assert [line for line in told if line] == [line for line in shown.splitlines() if line]
    assert all(f"`{name}`" in text for name in MODELS)


# Weights


def test_weights_of_compare_are_those_it_ended_with(folder, tmp_path, capsys):
    source = folder / "set & <b>.npz"
    words = "compare --models cnn --methods kfac --grid 0.3 --steps 4 --batch-size 10 --agreement 0"
    assert ngd(words, "--data", source, "--out", tmp_path, "--save") == 0
    run = json.loads((tmp_path / "results.json").read_text())["results"]["cnn"]["kfac"]["best"]
    file = tmp_path / "cnn-kfac.safetensors"
    assert f"Weights: {file}" in capsys.readouterr().out
    assert state.load(file).notes == {"data": str(source), "run": "cnn-kfac"}
    words = ["inspect", "--examples", "20", "--out", str(tmp_path / "seen"), "--data", str(source)]
    assert main([*words, "--weights", str(file)]) == 0
    got = numbers(tmp_path / "seen")["loss"]
    assert_close(got, run["final_train_loss"], dtype="float32", size=20)
    assert abs(got - run["train_loss"][0]) > 1e-3


def test_blocks_and_foreign_files_hold_the_same_weights(folder, tmp_path, found):
    from safetensors.numpy import save_file

    net, params, _, _ = network(folder / "set & <b>.npz")
    values = moved(params)
    state.save(folder / "blocks.safetensors", values)
    named = {name: np.ascontiguousarray(x) for name, x in weights.named(net, values).items()}
    save_file(named, folder / "foreign.safetensors")
    for k, name in enumerate(("blocks.safetensors", "foreign.safetensors")):
        assert inspected(folder, tmp_path / str(k), trained=name) == 0
        same = inspection.from_json(numbers(tmp_path / str(k)))
        assert same[1:] == found[1:]


def test_names_and_blocks_are_inverse(folder):
    net, params, _, _ = network(folder / "set & <b>.npz")
    named = weights.named(net, params)
    assert sorted(named) == sorted(
        f"{name}.{part}" for name in LAYERS for part in ("weight", "bias")
    )
    back = weights.blocks(net, named)
    assert all((back[name] == params[name]).all() for name in params)


# Mistakes


def said(capsys, *words):
    """The one sentence that a mistake gets."""
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ngd: ")
    assert err.count("\n") == 1
    assert err[5] == err[5].upper()
    return err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("inspect --model cnnn", ["model 'cnnn'", "did you mean cnn?"]),
        ("inspect --model transformer", ["is a module", "--backend torch"]),
        ("inspect --backend jax", ["backend 'jax'", "known: numpy, torch"]),
        ("inspect --weight x", ["option '--weight'", "did you mean --weights?"]),
        ("inspect --examples 0", ["--examples: '0' is not a whole number of at least 1"]),
        ("inspect --damping 0", ["--damping: '0' is not a number above 0"]),
        ("inspect --examples 5000", ["--examples 5000", "1437 training examples"]),
        ("inspect --examples 1000", ["10000 rows", "at most 819"]),
        ("inspect --weights nowhere.safetensors", ["no file 'nowhere.safetensors'"]),
        ("inspect --data mnist", ["no data set 'mnist'"]),
        ("compare --save --backend jax", ["--save", "numpy and torch"]),
    ],
)
def test_a_mistake_gets_one_sentence(capsys, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    err = said(capsys, *shlex.split(words))
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("safetensors", "inspect --weights w.safetensors", "files"),
        ("safetensors", "compare --save", "files"),
        ("torch", "inspect --backend torch", "torch"),
        ("rich", "inspect", "lab"),
    ],
)
def test_a_missing_library_gets_one_sentence(capsys, monkeypatch, tmp_path, module, words, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert f"pip install 'ngd-core[{extra}]'" in said(capsys, *words.split())


def test_a_run_that_diverges_leaves_no_weights(folder, tmp_path):
    words = "compare --models mlp-relu --methods sgd --steps 5 --batch-size 10 --grid 1e30 --save"
    assert ngd(words, "--data", folder / "set & <b>.npz", "--out", tmp_path) == 0
    assert list(tmp_path.glob("*.safetensors")) == []


def changed(arrays, **changes):
    return {name: x for name, x in (arrays | changes).items() if x is not None}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"conv1.bias": None}, ["lacks conv1.bias", "expected conv1.weight"]),
        ({"fc.bias": np.ones(3)}, ["holds fc.bias", "not of this model"]),
        ({"dense.bias": np.ones(4)}, ["'dense.bias'", "(4,)", "(3,)"]),
        ({"dense.bias": np.full(3, np.nan)}, ["'dense.bias'", "finite"]),
        ({"dense.bias": np.ones(3, int)}, ["'dense.bias'", "int64"]),
    ],
)
def test_weights_of_another_model_get_one_sentence(capsys, folder, tmp_path, changes, parts):
    net, params, _, _ = network(folder / "set & <b>.npz")
    path = tmp_path / "w.safetensors"
    state.save(path, changed(weights.named(net, params), **changes))
    words = ["inspect", "--data", folder / "set & <b>.npz", "--weights", path, "--examples", 4]
    err = said(capsys, *words, "--out", tmp_path / "out")
    for part in parts:
        assert part in err
    assert not (tmp_path / "out").exists()


def test_weights_whose_loss_is_not_finite_get_one_sentence(capsys, folder, tmp_path):
    net, params, _, _ = network(folder / "set & <b>.npz", "mlp-relu")
    path = tmp_path / "w.safetensors"
    state.save(path, {name: 1e200 * x for name, x in weights.named(net, params).items()})
    words = ["inspect", "--model", "mlp-relu", "--data", folder / "set & <b>.npz"]
    err = said(capsys, *words, "--weights", path, "--examples", 4, "--out", tmp_path / "out")
    assert "not a finite number" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle of torch", b"\x80\x04text"])
def test_what_is_no_safetensors_file_is_not_opened_otherwise(capsys, tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    err = said(capsys, "inspect", "--weights", path, "--out", tmp_path / "out")
    assert "cannot be read as safetensors" in err
    assert "safetensors.torch.save_file(model.state_dict()" in err


def test_a_file_of_ours_that_was_changed_is_refused(capsys, folder, tmp_path):
    content = bytearray((folder / "trained.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    words = ["inspect", "--data", folder / "set & <b>.npz", "--weights", tmp_path / "w.safetensors"]
    assert "damaged" in said(capsys, *words, "--examples", 4)


def test_an_inspection_is_not_replaced_unasked(capsys, folder):
    before = (folder / "out" / PAGE).read_bytes()
    words = ["inspect", "--data", folder / "set & <b>.npz", "--examples", 4]
    err = said(capsys, *words, "--out", folder / "out")
    assert "earlier inspection" in err
    assert "--overwrite" in err
    assert (folder / "out" / PAGE).read_bytes() == before


# The page


class Outline(HTMLParser):
    """Elements of a page in order, with what is said in them."""

    VOID = ("meta", "link", "br", "img", "rect", "path", "circle")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = {
            "tag": tag,
            "text": "",
            "inside": [e["tag"] for e in self.open],
            **dict(attributes),
        }
        element["above"] = list(self.open)
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]


@pytest.fixture(scope="module")
def outline(folder):
    return Outline((folder / "out" / PAGE).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(folder, outline):
    text = (folder / "out" / PAGE).read_text(encoding="utf-8")
    assert outline.all("script", "iframe", "object", "embed", "img") == []
    assert not re.search(r"@import|url\(|https?:|//\w", text)
    targets = [e[key] for e in outline.elements for key in ("href", "src") if key in e]
    assert targets
    assert all(target.startswith(("#", "data:,")) for target in targets)
    assert not any(key.startswith("on") for e in outline.elements for key in e)


def test_the_page_has_a_language_a_title_and_headings_in_order(outline):
    (root,) = outline.all("html")
    assert root["lang"] == "en"
    assert "Convolutional net" in outline.all("title")[0]["text"]
    levels = [int(e["tag"][1]) for e in outline.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_every_picture_has_a_title_and_a_description(outline, found):
    pictures = outline.all("svg")
    names = {e["id"]: e for e in outline.elements if "id" in e}
    assert len(pictures) == PICTURES
    for picture in pictures:
        assert picture["role"] == "img"
        title, description = (names[key] for key in picture["aria-labelledby"].split())
        assert (title["tag"], description["tag"]) == ("title", "desc")
        assert title["above"][-1] is description["above"][-1] is picture
        assert title["text"]
        assert re.search(r"\d", description["text"])
        assert "figure" in picture["inside"]


def test_names_are_unique_and_links_have_targets(outline):
    names = [e["id"] for e in outline.elements if "id" in e]
    assert len(set(names)) == len(names)
    links = [e["href"][1:] for e in outline.all("a")]
    assert links
    assert set(links) <= set(names)


def test_every_table_scrolls_in_a_frame_that_the_keyboard_reaches(outline):
    tables = outline.all("table")
    assert tables
    for table in tables:
        frame = table["above"][-1]
        assert frame["class"] == "scroll"
        assert (frame["tabindex"], frame["role"]) == ("0", "region")
        assert frame["aria-label"]
    for cell in outline.all("th"):
        assert cell["scope"] in ("row", "col")
    assert ".scroll{overflow-x:auto;max-width:100%}" in style.STYLE


def test_the_page_tells_every_figure(outline, found):
    rows = {}
    for cell in outline.all("td"):
        row = cell["above"][-1]["text"]
        rows.setdefault(cell["above"][-3]["text"][:40], set()).add(row)
    text = "\n".join(row for many in rows.values() for row in many)
    for name, layer in found.layers.items():
        assert f"{name}{layer.parameters:,}{svg.number(layer.information)}" in text
        for unit, x in enumerate(layer.units):
            assert f"{name}{unit}{svg.number(x)}" in text
        assert f"{name}{svg.number(layer.eigenvalues[0])}" in text
    for title, beside in found.methods.items():
        if beside.decrease is not None:
            assert re.search(rf"{re.escape(title)}.*{100 * beside.decrease:.1f} %", text)


def test_what_a_person_named_is_not_taken_for_markup(folder):
    text = (folder / "out" / PAGE).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "set &amp; &lt;b&gt;.npz" in text
    assert "set & <b>.npz" in Outline(text).all("p")[0]["text"]


def test_a_model_without_information_has_a_page(tmp_path):
    """One class alone: the loss is 0 whatever the weights, and so is the Fisher."""
    images, labels = np.ones((4, 6, 5)), np.zeros(4, int)
    source = tmp_path / "set.npz"
    np.savez(source, x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert ngd("inspect --examples 4", "--data", source, "--out", tmp_path / "out") == 0
    found = inspection.from_json(numbers(tmp_path / "out"))
    assert found.all.information == found.all.effective_dimension == 0
    text = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert len(Outline(text).all("svg")) == PICTURES
    assert not re.search(r"\b(nan|inf)\b", text)


def luminance(colour):
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_words_and_pictures_stand_out_from_the_paper(colours):
    assert set(colours) == set(style.LIGHT)
    for name in ("ink", "soft", "link"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("bar", "strong", "line"):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    assert contrast(colours["ink"], colours["track"]) >= 4.5


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000000", "#ffffff") == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


# Pictures


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_bars_are_as_long_as_their_shares(shares):
    rows = [svg.Bar(f"bar {k}", share, "") for k, share in enumerate(shares)]
    drawn = re.findall(
        r'width="([\d.]+)" height="8" rx="2" class="bar"', svg.bars("k", "t", "d", rows)
    )
    got = [float(width) / svg.WIDTH for width in drawn]
    assert np.abs(np.subtract(got, shares)).max() <= 0.05 / svg.WIDTH + 1e-9


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
@example([5e-324])
def test_columns_are_as_high_as_their_numbers(heights):
    drawn = re.findall(r"v-([\d.]+)h", svg.columns("k", "t", "d", heights))
    assert len(drawn) == len(heights)
    top = max(heights)
    highest = max(map(float, drawn))
    assert (highest > 50) == (top > 0)
    for got, height in zip(map(float, drawn), heights, strict=True):
        assert abs(got - (highest * height / top if top else 0)) <= 0.11


def test_a_curve_goes_where_its_points_are():
    points = [(1.0, 100.0), (10.0, 1.0), (100.0, 1e-9)]
    drawn = svg.curve(
        "k", "t", "d", points, x_label="x", log=(True, True), y_range=(0.01, 100.0), at=(None, 1.0)
    )
    (path,) = re.findall(r'd="M([^"]+)" class="curve"', drawn)
    (x0, y0), (x1, y1) = (tuple(map(float, at.split())) for at in path.split("L"))
    left, right, floor = svg.LEFT, svg.WIDTH - svg.RIGHT, 134
    assert (x0, y0) == (left, svg.TOP)
    assert x1 == (left + right) / 2
    assert abs(y1 - (svg.TOP + floor) / 2) <= 0.05
    (line,) = re.findall(r'd="M\d+ ([\d.]+)H\d+" class="line"', drawn)
    assert float(line) == y1


@given(st.floats(1e-30, 1e30))
def test_a_number_for_people_is_the_number_to_three_digits(x):
    text = svg.number(x)
    plain = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    read = float(plain.replace(",", "").replace(" × 10", "e"))
    assert abs(read - x) <= 0.00501 * x
    assert len(text) <= 13


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (0.000451, "0.000451"),
        (1898.2, "1,898"),
        (9.999e-5, "0.000100"),
        (4.2e-7, "4.20 × 10⁻⁷"),
        (999999.6, "1.00 × 10⁶"),
    ],
)
def test_numbers_for_people(x, text):
    assert svg.number(x) == text
