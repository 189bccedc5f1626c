"""The model card's words: what it admits, what the hub reads, and that nothing of others' texts is markup in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from llava_api.constants import GateOutcome, StageName
from llava_api.report import Judgement
from llava_api.spec import Alignment, Generation, Publish, Training
from llava_trainer.data.dataset_report import DatasetReport, Shared
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.shard_file import Repeats
from llava_trainer.inputs import Inputs
from llava_trainer.merging.manifest import Manifest
from llava_trainer.publishing.card import Known, build_card
from llava_trainer.publishing.card_limits import list_limits
from llava_trainer.publishing.card_metadata import hub_id_of
from tests.trainer.report_pages import NASTY, make_answer, make_metrics
from tests.trainer.runs import dataset_report, describe_run

HOSTILE = (
    f"{NASTY}\n---\nlicense: mit\n# heading | cell\n[a](https://evil.example) ![b](//x) `c` ``` www.evil.example @me"
)
COMMIT = "c0ffee42" * 5
MERGED = {
    "origin": {"base": "a-b/c_d", "base_revision": COMMIT, "base_config": "sha256:ab", "trained": {},
               "dtype": "bfloat16", "versions": {"torch": "2.15.0"}},
    "files": {},
}  # fmt: skip


def make_known(
    *, origins: dict[str, str] | None = None, layout: str = "hub", publish: dict[str, Any] | None = None,
    merged: dict[str, Any] | None = None, metrics: Metrics | None = None, dataset: DatasetReport | None = None,
    **changes: Any,
) -> Known:  # fmt: skip
    config = describe_run(Path("/run"), StageName.PUBLISH, **changes)
    asked = {"destinations": [{"address": "pvc://models/invoices"}], **(publish or {})}
    inputs = Inputs(
        model_dir=Path("base"), dataset_dir=Path("data"), model_layout=layout,
        origins={"model": f"hf://a-b/c_d@{COMMIT}", "dataset": f"hf://a/d@{COMMIT}"} if origins is None else origins,
    )  # fmt: skip
    return Known(
        config=config.model_copy(update={"publish": Publish.model_validate(asked)}),
        inputs=inputs,
        dataset=dataset or dataset_report(held_out=50, trained_on=1234),
        metrics=metrics or make_metrics([make_answer(str(n)) for n in range(9)]),
        merged=Manifest.model_validate({**MERGED, "origin": {**MERGED["origin"], **(merged or {})}}),
        trained=None,
        merging=None,
    )


def links_of(card: str) -> list[str]:
    """Addresses that a reader of Markdown would follow or fetch, bare ones included, and HTML."""
    reader = MarkdownIt("gfm-like", {"linkify": False, "html": True}).enable("table")
    tokens = [inner for token in reader.parse(card) for inner in (token, *(token.children or []))]
    found = [str(token.attrs.get("href") or token.attrs.get("src")) for token in tokens if token.attrs]
    return [one for one in found if one != "None"] + [t.content for t in tokens if t.type.startswith("html")]


def test_nothing_of_others_texts_is_markup() -> None:
    """Names, sources and types as hostile as can be: the same lines, no link, no HTML, no other metadata."""
    answers = [make_answer(HOSTILE, text=HOSTILE, type=HOSTILE) for _ in range(9)]
    hostile = make_known(
        metrics=make_metrics(answers, name=HOSTILE),
        run={"name": HOSTILE, "namespace": HOSTILE},
        merged={"base": HOSTILE, "base_revision": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        origins={"model": HOSTILE, "dataset": f"hf://{HOSTILE}"},
    )
    data = hostile.config.dataset.model_copy(update={"source": f"pvc://x/{HOSTILE}", "file": HOSTILE})
    hostile = replace(hostile, config=hostile.config.model_copy(update={"dataset": data}))
    clean = make_known(
        metrics=make_metrics([make_answer("n", text="t", type="y") for _ in range(9)]),
        merged={"base": "s3://a", "base_revision": "b"},
        origins={"model": "s3://a/b", "dataset": "s3://a/c"},
    )
    for what in ("merged", "adapter"):
        card = build_card(hostile, what)
        front, text = card.split("\n---\n", maxsplit=1)
        told = yaml.safe_load(front.removeprefix("---\n"))
        assert told.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
        assert "license" not in told
        assert links_of(text) == []
        assert len(text.splitlines()) == len(build_card(clean, what).split("\n---\n", maxsplit=1)[1].splitlines())
        assert ModelCard(card).data.model_name.startswith("<script>")


@pytest.mark.parametrize(
    ("license_name", "told"),
    [
        (None, {}),
        ("llama2", {"license": "llama2"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("My-Own-1.0", {"license": "other", "license_name": "my-own-1.0"}),
    ],
)
def test_licences_that_the_hub_does_not_know_have_a_name(license_name: str | None, told: dict[str, str]) -> None:
    data = ModelCard(build_card(make_known(publish={"license": license_name}), "merged")).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == told


def test_only_what_the_hub_has_is_linked() -> None:
    origins = {
        "language-model": "hf://lmsys/vicuna@main", "vision-tower": "hf://openai/clip", "dataset": "https://x.example/d.zip",
        "mixture-0": "hf://a/mixed@main", "alignment-dataset": "hf://a/captions", "retention": "hf://a/kept",
    }  # fmt: skip
    data = ModelCard(build_card(make_known(origins=origins, layout="assembled"), "merged")).data
    assert data.base_model == ["lmsys/vicuna", "openai/clip"]
    assert data.datasets == ["a/captions", "a/mixed"], "what nothing was learned from is not among them"
    assert hub_id_of("s3://a/b") is None


@pytest.mark.parametrize(
    ("training", "served"),
    [
        ({}, "Servers load no adapter that brings a projector"),
        (
            {"projector": "frozen", "visionTower": {"mode": "full"}},
            "Servers load no adapter that brings a vision tower",
        ),
        ({"projector": "frozen"}, "--max-lora-rank 16 --lora-modules"),
    ],
)
def test_whether_a_server_loads_the_adapter(training: dict[str, Any], served: str) -> None:
    settings = {"batch": {"perDevice": 4, "global": 8}, "lora": {"rank": 12}, **training}
    assert served in build_card(make_known(training=Training.model_validate(settings).model_dump()), "adapter")


def test_an_adapter_upon_an_aligned_projector_says_so() -> None:
    captions = Alignment.model_validate({"dataset": {"source": "pvc://captions/", "format": "llava", "file": "c.json"}})
    known = make_known(training={"projector": "frozen"})
    known = replace(known, config=known.config.model_copy(update={"alignment": captions}))
    assert "the projector that the run's alignment has made" in build_card(known, "adapter")


@pytest.mark.parametrize(
    ("adapter", "aligned", "told"),
    [
        (None, False, "as the run was given it: nothing was trained"),
        ("pvc://adapters/a", False, "merged with an adapter that the run was given"),
        (None, True, "with a projector that was aligned by the run"),
    ],
)
def test_a_run_that_trains_nothing_claims_no_training(adapter: str | None, aligned: bool, told: str) -> None:
    known = make_known(training={"method": "none"})
    alignment = Alignment.model_validate({"dataset": {"source": "pvc://c/", "format": "llava", "file": "c.json"}})
    changes = {
        "model": known.config.model.model_copy(update={"adapter": adapter}),
        "alignment": alignment if aligned else None,
    }
    card = build_card(replace(known, config=known.config.model_copy(update=changes)), "merged")
    assert f", {told}." in card
    assert "fine-tuned" not in card
    assert "| Not learned from |" in card
    assert "all learned from" not in card
    assert ModelCard(card).data.datasets is None


def test_a_base_that_has_no_name_is_left_to_the_reader() -> None:
    """Where the run has converted or joined it, its name would load something else."""
    for layout, base in (
        ("original", "hf://liuhaotian/llava-v1.5-7b@main"),
        ("hub", None),
        ("hub", "s3://models/llava"),
    ):
        card = build_card(make_known(layout=layout, merged={"base": base, "base_revision": None}), "adapter")
        assert 'BASE = "BASE"  # folder of the base in hub layout' in card
        assert "revision=" not in card
    named = build_card(make_known(), "adapter")
    assert 'BASE = "a-b/c_d"\nMODEL' in named
    assert f'revision="{COMMIT}"' in named


def limits(metrics: Metrics | None = None, **dataset: Any) -> str:
    known = make_known(metrics=metrics, dataset=dataset_report(held_out=50, trained_on=9).model_copy(update=dataset))
    return "\n".join(list_limits(known.dataset, known.metrics, known.config))


def judge(outcome: GateOutcome) -> Judgement:
    return Judgement(outcome=outcome, metric="exact_match", gain=0.1, low=0, high=0.2, limit=0.3, samples=9, groups=9)


def test_what_was_not_measured_or_flatters_is_admitted() -> None:
    answers = [make_answer(str(n), is_cut=n == 0) for n in range(10)]
    plain = limits()
    assert "Nothing but what these questions ask" in plain
    assert "No least gain was asked for" in plain
    assert "was not measured (evaluation.retention)" in plain
    assert "scored in float32; the weights here are in bfloat16" in plain
    for absent in ("cut off at", "flatters", "undecided", "has failed", "No held-out", "one by one", "4bit"):
        assert absent not in plain
    failed = limits(make_metrics(answers, gate=judge(GateOutcome.FAILED), retention=judge(GateOutcome.UNDECIDED)))
    assert "The gate has failed: +10.0 points, +30.0 were asked for." in failed
    assert "The retention is undecided: 9 questions do not suffice for its limit of +30.0 points." in failed
    assert "10.0\u202f% of its answers were cut off at 512 tokens" in failed
    passed = limits(make_metrics(answers, gate=judge(GateOutcome.PASSED), retention=judge(GateOutcome.PASSED)))
    assert "evaluation.gate" not in passed
    assert "evaluation.retention" not in passed
    more = limits(
        make_metrics(
            answers,
            unscored=("anls",),
            repeats=(Repeats(model="tuned", asked=16, changed=2), Repeats(model="base", asked=16, changed=9)),
        ).model_copy(update={"generation": Generation(load="4bit")}),
        shared=Shared(groups=2, pairs=3),
        relearned=1,
        left_out=4,
        can_decide=False,
    )
    for part in (
        "3 held-out questions of 2 groups that training has samples of, too: their score flatters",
        "ANLS was asked for, and has no say", "2 of 16 answers came out otherwise", "model in 4bit;",
        "1 sample of the retention set", "4 samples of the data could not be learned from", "and cannot tell the model",
    ):  # fmt: skip
        assert part in more, part
    assert "No held-out question was scored" in limits(make_metrics([]))
    lengths = dataset_report(held_out=1, trained_on=1).lengths.model_copy(update={"overlong": 2})
    assert "2 samples longer than 512 tokens were learned from in part" in limits(lengths=lengths)
    pictures = dataset_report(held_out=1, trained_on=1).pictures.model_copy(update={"side_px": 336})
    assert "336 x 336 pixels" in limits(pictures=pictures)
