"""What has come of a run: scores, results, or why it failed."""

from typing import Annotated

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import GateOutcome, StageName
from llava_api.spec.publish import MAX_DESTINATIONS
from llava_api.status.values import Count, Short, Text

MAX_SCORES = 16
"""Scores in a status; metrics.json on the volume has them all."""


class Metric(Lenient):
    """One score, base against tuned."""

    name: Annotated[Short, Field(description="Metric, like exact_match.")]
    split: Annotated[
        Short, Field(description="validation (held out), train (seen in training) or retention (not to be forgotten).")
    ]
    base: Annotated[float, Field(description="Score of the base model, asked the better of both ways.")]
    tuned: Annotated[float, Field(description="Score of the tuned model.")]
    gain: Annotated[float, Field(description="tuned - base.")]
    samples: Annotated[Count, Field(description="Questions scored.")]
    samples_shared: Annotated[
        Count, Field(description="Those of them whose group training has samples of, too: the score flatters.")
    ] = 0
    groups: Annotated[Count, Field(description="Groups of these questions, which is what chance draws.")] = 0
    base_low: Annotated[float | None, Field(description="Lower end of base's 95 % interval.")] = None
    base_high: Annotated[float | None, Field(description="Upper end of it.")] = None
    tuned_low: Annotated[float | None, Field(description="Lower end of tuned's 95 % interval.")] = None
    tuned_high: Annotated[float | None, Field(description="Upper end of it.")] = None
    gain_low: Annotated[float | None, Field(description="Lower end of the gain's 95 % interval.")] = None
    gain_high: Annotated[float | None, Field(description="Upper end of it.")] = None


class GateStatus(Lenient):
    """What a gate says of the tuned model."""

    outcome: Annotated[
        GateOutcome, Field(description="Passed, Failed, or Undecided where the questions are too few to say.")
    ]
    metric: Annotated[Short, Field(description="Metric that decides.")]
    gain: Annotated[float, Field(description="tuned - base, the base asked the better of both ways.")]
    low: Annotated[float, Field(description="Lower end of the gain's 95 % interval.")]
    high: Annotated[float, Field(description="Upper end of it.")]
    limit: Annotated[float, Field(description="What the gain has to be above.")]
    samples: Annotated[Count, Field(description="Questions that it goes by.")]
    groups: Annotated[Count, Field(description="Groups of these.")]
    smallest_difference: Annotated[
        float | None,
        Field(description="Smaller differences these questions cannot show. Left out: too few groups for any."),
    ] = None


class EvaluationStatus(Lenient):
    """What evaluation measured."""

    metrics: Annotated[tuple[Metric, ...], Field(max_length=MAX_SCORES, description="Scores of both models.")] = ()
    gate: Annotated[GateStatus | None, Field(description="Whether it is as much better as was asked for.")] = None
    retention: Annotated[GateStatus | None, Field(description="Whether it has forgotten as little as was asked.")] = (
        None
    )

    @property
    def gates(self) -> dict[str, GateStatus]:
        """Those that were asked for, by name."""
        asked = {"gate": self.gate, "retention": self.retention}
        return {name: gate for name, gate in asked.items() if gate is not None}


class PublishedStatus(Lenient):
    """What stands at one destination."""

    address: Annotated[
        Text,
        Field(
            description="Destination, as the spec had it; with publish.what both the adapter is in adapter/ below it "
            "(oci: under TAG-adapter)."
        ),
    ]
    what: Annotated[Short, Field(description="merged or adapter.")]
    revision: Annotated[
        Short, Field(description="The hub's commit, or the digest of the registry's manifest; else empty.")
    ] = ""
    digest: Annotated[Short, Field(description="sha256 of all files together; equal wherever the same stands.")]
    size_bytes: Annotated[Count, Field(description="Bytes of all files.")]


class Artifacts(Lenient):
    """Where things lie on the run's volume, and what they are."""

    volume_claim: Annotated[Short | None, Field(description="PersistentVolumeClaim that holds them.")] = None
    volume_folder: Annotated[
        Short | None,
        Field(description="Folder of the claim that everything of the run lies in; the claim's root if left out."),
    ] = None
    access_modes: Annotated[
        tuple[Short, ...], Field(max_length=4, description="Access modes that it was asked for with.")
    ] = ()
    dataset_report: Annotated[Text | None, Field(description="Path of the dataset report (HTML).")] = None
    projector: Annotated[Text | None, Field(description="Path of the projector that phase 1 made.")] = None
    adapter: Annotated[
        Text | None,
        Field(description="Path of the adapter, and in it the projector unless frozen, with methods lora and qlora."),
    ] = None
    weights: Annotated[
        Text | None,
        Field(description="Path of the trained language model, and the projector unless frozen, with method full."),
    ] = None
    merged: Annotated[Text | None, Field(description="Path of the merged model, in hub layout.")] = None
    report: Annotated[Text | None, Field(description="Path of the evaluation report (HTML).")] = None
    published: Annotated[
        tuple[PublishedStatus, ...], Field(max_length=2 * MAX_DESTINATIONS, description="Where it stands for others.")
    ] = ()
    digests: Annotated[
        dict[Annotated[str, Field(max_length=63)], Short],
        Field(max_length=32, description="sha256 of each, by name."),
    ] = {}


class FailureStatus(Lenient):
    """Why the run failed."""

    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")]
    message: Annotated[Text, Field(description="What happened.")] = ""
    hint: Annotated[Text, Field(description="What can be done about it.")] = ""
    stage: Annotated[StageName | None, Field(description="Stage that failed.")] = None
    attempt: Annotated[Count, Field(description="Its attempt.")] = 0
    pod: Annotated[Short | None, Field(description="Pod that failed first.")] = None
    node: Annotated[Short | None, Field(description="Node of that pod.")] = None
    rank: Annotated[int | None, Field(description="Global rank of the process that failed first.")] = None
    exit_code: Annotated[int | None, Field(description="Exit code of its container.")] = None
    step: Annotated[Count | None, Field(description="Steps of training that were done by then.")] = None
    attempt_steps: Annotated[Count | None, Field(description="Those of them that the attempt has done.")] = None
    log_tail: Annotated[Text, Field(description="Last lines of its log.")] = ""
