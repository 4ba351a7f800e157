"""The gate: what it reads, what it lets pass, and damaged models that it must catch with the line that says where."""

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.data.case import stream
from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.subgroups import by_case
from hscc_edge.errors import ConfigError
from hscc_edge.export.parity import Parity
from hscc_edge.export.precision import to_fp16
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import Head, parse_head
from hscc_edge.validate.agreement import parities
from hscc_edge.validate.compare import compare
from hscc_edge.validate.gate import Found, Gating, hold
from hscc_edge.validate.latency import Race, compare_times
from hscc_edge.validate.metrics import class_figures
from hscc_edge.validate.outcomes import outcomes
from hscc_edge.validate.predict import Case, predict
from hscc_edge.validate.requirements import Requirements, read_requirements
from hscc_edge.validate.subgroups import groups

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "gate.example.toml"
LABELS = ("glioma", "meningioma", "none")
HEAD = Head("softmax", LABELS)
RULE = parse_rule({"unit": "study"})
STRICT = Requirements(margin=0.05, group_margin=0.10, parity={"onnx": 0.01})


def cohort(patients: int = 360) -> Cohort:
    """A table alone, without files: one study a patient, three sites, two sexes."""
    rows = tuple(
        Instance(f"{i}.dcm", f"p{i}", f"1.{i}", f"2.{i}", f"3.{i}", LABELS[i % 3], "test", "d", site="ABC"[i // 3 % 3],
                 sex="FM"[i // 9 % 2])
        for i in range(patients)
    )  # fmt: skip
    return Cohort(Path("nowhere"), "made", "study", LABELS, "made", {}, rows)


def cases(rows: Cohort, seed: int = 0, swapped: str = "") -> list[Case]:
    """Decisions that are right in most cases; in site `swapped` gliomas are called meningiomas."""
    rng, found = np.random.default_rng(seed), []
    for uid, items in rows.cases("study").items():
        item = items[0]
        logits = rng.normal(size=(1, 3)) + 4.0 * np.eye(3)[LABELS.index(item.label)]
        if item.site == swapped and item.label == "glioma":
            logits = logits[:, [1, 0, 2]]
        found.append(Case(uid, item.patient, item.label, decide(RULE, HEAD, logits), logits.astype(np.float32)))
    return found


@functools.cache
def raced() -> Race:
    return compare_times(np.full(400, 20.0), np.linspace(4.0, 6.0, 400))


def gated(wanted: Requirements, first: list[Case], second: list[Case], columns, **more) -> Gating:
    told = outcomes(second, LABELS)
    figures = [class_figures(label, told.truth[:, k], told.decided[:, k], told.cases) for k, label in enumerate(LABELS)]
    found = Found(
        comparison=compare(first, second, HEAD),
        classes={item.label: item for item in figures},
        groups=groups(first, second, columns, wanted.group_margin),
        race=raced(),
        runtime="ort",
        **more,
    )
    return hold(wanted, found)


def states(gating: Gating) -> dict[str, str]:
    return {line.name: line.state for line in gating.lines}


@pytest.fixture(scope="module")
def rows() -> Cohort:
    return cohort()


@pytest.fixture(scope="module")
def columns(rows):
    return by_case(rows, "study")


def test_an_unchanged_model_passes_what_was_measured(rows, columns):
    first = cases(rows)
    parity = {"onnx": Parity(16, 1.0, 1e-5, 8.0)}
    gating = gated(STRICT, first, first, columns, parity=parity)
    assert states(gating)["accuracy.margin_points"] == "PASS" and states(gating)["parity.onnx"] == "PASS"
    assert {name for name in states(gating) if name.startswith("subgroups.")} == {
        f"subgroups.{name}.margin_points"
        for name in ("class=glioma", "class=meningioma", "class=none", "site=A", "site=B", "site=C", "sex=F", "sex=M")
    }
    assert gating.state == "PASS" and gating.exit_code == 0


def test_one_class_swapped_in_a_subgroup_fails_there_and_nowhere_else(rows, columns):
    wanted = dataclasses.replace(STRICT, margin=0.16)
    gating = gated(wanted, cases(rows), cases(rows, swapped="B"), columns)
    assert states(gating)["accuracy.margin_points"] == "PASS"  # over all cases it is hidden
    failed = {line.name: line.figures for line in gating.lines if line.state == "FAIL"}
    assert set(failed) == {"subgroups.site=B.margin_points", "subgroups.class=glioma.margin_points"}
    assert "most of glioma: 40 of 40 lost" in failed["subgroups.site=B.margin_points"]
    assert gating.exit_code == 1
    floors = gated(Requirements(sensitivity={"glioma": 0.9}, group_accuracy=0.8), cases(rows), cases(rows, swapped="B"),
                   columns)  # fmt: skip
    assert states(floors)["sensitivity.glioma"] == "FAIL" and states(floors)["subgroups.site=B.accuracy"] == "FAIL"
    assert states(floors)["subgroups.site=A.accuracy"] == "PASS"


def test_small_groups_are_shown_and_never_pass():
    rows = cohort(24)
    gating = gated(dataclasses.replace(STRICT, group_accuracy=0.1), cases(rows), cases(rows), by_case(rows, "study"))
    small = [line for line in gating.lines if line.name.startswith("subgroups.site")]
    assert len(small) == 6 and all(line.state == "INCONCLUSIVE" for line in small)
    assert all("too few to say much" in line.figures for line in small) and gating.exit_code == 3


def test_what_was_not_run_is_inconclusive(rows, columns):
    wanted = Requirements(p99_ms=10.0, speedup=2.0, runtime="trt", peak_mib=100.0, parity={"engine": 0.01})
    gating = gated(wanted, cases(rows), cases(rows), columns, not_run={"parity.engine": "no GPU"})
    assert set(states(gating).values()) == {"INCONCLUSIVE"} and gating.exit_code == 3
    assert all("not run: " in line.figures for line in gating.lines) and "no GPU" in gating.lines[-1].figures
    none = hold(Requirements(group_margin=0.1), Found(compare(cases(rows), cases(rows), HEAD), {}, (), None, "ort"))
    assert none.state == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        (Requirements(p99_ms=10.0), "PASS"), (Requirements(p99_ms=5.0), "FAIL"),
        (Requirements(p99_ms=5.99), "INCONCLUSIVE"), (Requirements(speedup=3.0), "PASS"),
        (Requirements(speedup=6.0), "FAIL"), (Requirements(peak_mib=500), "FAIL"), (Requirements(peak_mib=700), "PASS"),
    ],
)  # fmt: skip
def test_limits_are_held_by_whole_intervals(rows, columns, wanted, state):
    assert gated(wanted, cases(rows), cases(rows), columns, peak_mib=600.0).state == state


def test_a_class_that_is_not_there_is_told(rows, columns):
    with pytest.raises(ConfigError, match="line 4 of the gate names the class 'gliom'"):
        gated(
            Requirements(sensitivity={"gliom": 0.5}, lines={"sensitivity.gliom": 4}), cases(rows), cases(rows), columns
        )


def test_the_example_is_read():
    found = read_requirements(EXAMPLE)
    assert (found.margin, found.group_margin, found.p99_ms, found.speedup) == (0.02, 0.10, 20.0, 2.0)
    assert found.parity == {"onnx": 0.001} and found.peak_mib == 1024


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[accuracy]\nmargin_point = 2\n",
            r"line 2 of .* has the unknown key 'margin_point' in \[accuracy\]: expected ",
        ),
        ("# words\n\n[acuracy]\n", r"line 3 of .* has the unknown key 'acuracy': expected one of accuracy, "),
        (
            "[accuracy]\nmargin_points = 0\n",
            r"line 2 of .*: margin_points in \[accuracy\] is 0: expected a number above 0",
        ),
        ("[memory]\npeak_mib = true\n", r"line 2 of .* is True: expected a number above 0$"),
        ('[sensitivity]\n"no tumour" = 101\n', r"line 2 of .*: no tumour in \[sensitivity\] is 101"),
        ('[subgroups]\ncolumns = "site"\n', r"line 2 of .* expected a list of texts"),
        ("[latency]\nruntime = 3\n", r"line 2 of .* expected a text"),
        ("latency = 3\n", r"line 1 of .*'latency' is no table"),
        ("[accuracy]\nmargin_points = \n", r"is not TOML .*line 2"),
        ("[latency]\n", "asks for nothing"),
        ("", "asks for nothing"),
    ],
)
def test_mistakes_in_a_gate_name_their_line(text, sentence, tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_requirements(path)


def relabelled(cohort: Cohort, found: list[Case], unit: str) -> Cohort:
    """The cohort as the reference decides it, so that the reference is right."""
    decided = dict(zip(cohort.cases(unit), (case.decision.label for case in found), strict=True))
    rows = (dataclasses.replace(item, label=decided[item.study]) for item in cohort.instances)
    return dataclasses.replace(cohort, instances=tuple(rows))


class Brightness:
    """A classifier of mean brightness: the first label above `limit`, the second below."""

    name = "brightness"

    def __init__(self, labels: int, limit: float) -> None:
        self.labels, self.limit = labels, limit

    def infer(self, images):
        found = np.full((len(images), self.labels), -9.0, np.float32)
        found[:, 0] = 50 * (images.mean(axis=(1, 2, 3)) - self.limit)
        found[:, 1] = -found[:, 0]
        return found

    def close(self) -> None:
        """Nothing is held."""


def test_a_wrong_window_fails(dense, phantom):
    """The same classifier behind a window that shows a few grey values of the brightest alone."""
    bundle = read_bundle(dense)
    spec = bundle.spec
    first, *rest = spec.preprocess
    wrong = dataclasses.replace(
        bundle, spec=dataclasses.replace(spec, preprocess=[{**first, "lower": 99.0, "upper": 99.9}, *rest])
    )
    means = [pixels.mean() for _, pixels in stream(phantom, parse_preprocess(spec.preprocess))]
    runtime = Brightness(len(spec.labels), float(np.median(means)))
    known = relabelled(phantom, predict(bundle, runtime, phantom), spec.decision["unit"])
    before, after = predict(bundle, runtime, known), predict(wrong, runtime, known)
    gating = hold(Requirements(margin=0.05), Found(compare(before, after, parse_head(spec.head)), {}, (), None, "ort"))
    assert gating.lines[0].name == "accuracy.margin_points" and " INFERIOR" in f" {gating.lines[0].figures}"
    assert gating.exit_code == 1


def overflowing(bundle: Bundle, root: Path) -> Bundle:
    """An FP16 graph whose first layer answers beyond FP16's range and whose second takes it back."""
    model = onnx.load_from_string(bundle.path("models/model.onnx").read_bytes())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    largest = max(np.abs(numpy_helper.to_array(tensors[name])).max() for name in layers[0].input[1:])
    much = 6e4 / float(largest)  # the weights themselves fit
    scaled = [(name, much) for name in layers[0].input[1:]] + [(layers[1].input[1], 1 / much)]
    for name, factor in scaled:
        values = numpy_helper.to_array(tensors[name]) * np.float32(factor)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    shutil.copytree(bundle.root, root)
    (root / "models" / "model.fp16.onnx").write_bytes(to_fp16(model.SerializeToString()))
    return dataclasses.replace(bundle, root=root, files={**bundle.files, "models/model.fp16.onnx": ""})


def test_an_overflow_in_fp16_fails_in_the_line_of_the_graph(dense, phantom, tmp_path, rows, columns):
    broken = overflowing(read_bundle(dense), tmp_path / "broken")
    found, not_run = parities(broken, phantom.select("test"), "fp16")
    assert "TensorRT" in not_run["engine"] or "tensorrt" in not_run["engine"]
    gating = gated(STRICT, cases(rows), cases(rows), columns, parity=found)
    failed = [line for line in gating.lines if line.state == "FAIL"]
    assert [line.name for line in failed] == ["parity.onnx"]
    assert f"{found['onnx'].overflowed} of {found['onnx'].images} images overflowed" in failed[0].figures
    assert found["onnx"].overflowed > 0 and "FP16 emulated" in failed[0].figures
