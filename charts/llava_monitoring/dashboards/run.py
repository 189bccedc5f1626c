"""One run: how far it is, how it learns, what it takes beside what was planned, and where its report lies."""

from grafana_foundation_sdk.models import dashboard as models

from llava_api.constants import STAGE_CONTAINER
from llava_api.names import volume_claim_name
from llava_monitoring.dashboards.board import RUN, Moments, build
from llava_monitoring.panels import (
    BLUE,
    BYTES,
    COUNT,
    GREEN,
    OF_PHASES,
    RATIO,
    RED,
    SECONDS,
    YELLOW,
    Column,
    Query,
    Row,
    bars,
    graph,
    note,
    number,
    row,
    rows_of,
)
from llava_monitoring.queries import OF_RUN, PODS_OF_RUN, select
from llava_monitoring.variables import choice

_STAGE = f'container="{STAGE_CONTAINER}"'


def _of(metric: str, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    """A metric of the run, once for each of the labels."""
    series = select(metric, OF_RUN, *matchers)
    return f"max by ({', '.join(labels)}) ({series})" if labels else f"max({series})"


def _pods(metric: str, *matchers: str) -> str:
    return select(metric, PODS_OF_RUN, *matchers)


def _stands() -> Row:
    return row(
        "Where it stands",
        number("Phase", "The run at a glance; kubectl describe lft has the conditions behind it.", COUNT,
               Query(f"{_of('llava_run_phase', 'phase')} == 1", "{{phase}}"), named=True, absent="no such run"),
        number("Stage done", "How much of the stage is done that reports.", RATIO,
               Query(_of("llava_run_progress_ratio")), absent="-"),
        number("Time left in the stage", "Estimated from the steps so far; of the stage that reports, not of the run.",
               SECONDS, Query(_of("llava_run_eta_seconds")), absent="-"),
        number("Since the last report", "A stage that is alive reports every few seconds; one that stands still does "
               "not. After a quarter of an hour look at its pods' logs.", SECONDS,
               Query(f"time() - {_of('llava_run_progress_timestamp_seconds')}"),
               steps=[(None, GREEN), (300, YELLOW), (900, RED)], absent="-"),
        number("Age of the newest checkpoint", "What a failure would cost at most. A run that has ended needs none.",
               SECONDS, Query(f"time() - {_of('llava_run_checkpoint_timestamp_seconds')}"),
               steps=[(None, GREEN), (3600, YELLOW), (7200, RED)], absent="-"),
        number("Own failures", "Attempts that ended by a failure of the run's own; spec.training.maxRestarts bounds "
               "them. Drains, preemption and lost nodes do not count.", COUNT,
               Query(f"sum({_of('llava_run_restarts', 'stage')})"), steps=[(None, GREEN), (1, YELLOW), (3, RED)]),
        rows_of("Stages", "Every stage that was begun: its newest attempt, its own failures and how long it has taken.",
                [Query(f"{_of('llava_run_stage_state', 'stage', 'state')} == 1"),
                 Query(_of("llava_run_attempt", "stage")), Query(_of("llava_run_restarts", "stage")),
                 Query(_of("llava_run_stage_duration_seconds", "stage")), Query(_of("llava_run_gpu_seconds", "stage"))],
                [Column("Stage", "stage"), Column("State", "state"), Column("Attempt", "Value #B"),
                 Column("Own failures", "Value #C"), Column("Took", "Value #D", SECONDS),
                 Column("GPU time", "Value #E", SECONDS)],
                width=12),
        graph("What it waits for", "How long a stage has been waiting, by reason (docs/waiting.md). Nothing here: "
              "nothing stands in the way.", SECONDS,
              Query(f"time() - {_of('llava_run_waiting_timestamp_seconds', 'stage', 'reason')}",
                    "{{stage}}: {{reason}}"), width=12),
    )  # fmt: skip


def _learning() -> Row:
    return row(
        "Training",
        graph("Loss", "Training loss of the last reported step, per supervised token of the whole global batch. After "
              "a restart the steps since the newest checkpoint are done again. Held out: of samples that are not "
              "learned from (spec.training.validation); where it rises for long, more training makes it worse.", "none",
              Query(_of("llava_run_loss"), "loss"), Query(_of("llava_run_validation_loss"), "held out"),
              least=None),
        graph("Held-out answers that are exact", "Share of them that greedy decoding would give word for word. It "
              "often rises while held-out loss rises, too: spec.training.keepBest.by says which of the two decides.",
              RATIO, Query(_of("llava_run_validation_exact_ratio"), "exact")),
        graph("Throughput", "Real (not padding) tokens a second over all processes. A step down that stays is a slow "
              "node or a slow volume.", COUNT, Query(_of("llava_run_tokens_per_second"), "tokens a second")),
        graph("Gradient norm", "Before it is clipped. A norm that climbs for long ends in a loss that does: lower the "
              "learning rate.", "none", Query(_of("llava_run_gradient_norm"), "norm"), logarithmic=True),
        graph("Learning rate", "Warm-up and decay as they were planned.", "none",
              Query(_of("llava_run_learning_rate"), "learning rate")),
        graph("Steps", "Steps done, of how many, and the step that the newest complete checkpoint has.", COUNT,
              Query(_of("llava_run_step"), "done"), Query(_of("llava_run_planned_steps"), "planned"),
              Query(_of("llava_run_checkpoint_step"), "in the newest checkpoint"),
              Query(_of("llava_run_best_step"), "best by validation")),
        graph("Waiting for data", "Share of the steps' time in which the process that waited longest had no batch yet. "
              "Above a tenth the GPUs are held up: give the pods more cores, or a quicker volume.", RATIO,
              Query(_of("llava_run_data_wait_ratio"), "waits")),
        graph("Model FLOPs utilisation (MFU)", "What learning from the real tokens and pictures needs, over what the "
              "GPUs can compute at most in bf16. Filling, recomputation and waiting lower it. Only on GPUs whose peak "
              "is known.", RATIO, Query(_of("llava_run_mfu_ratio"), "MFU")),
        graph("Epochs", "Passes through the dataset.", "none", Query(_of("llava_run_epoch"), "epochs")),
        graph("Samples", "Samples a second of the stage that reports: checked, trained on, or answered.", COUNT,
              Query(_of("llava_run_samples_per_second"), "samples a second"), width=12),
        graph("Time left in the stage", "As it was estimated over time. It falls by a second a second where all goes "
              "evenly.", SECONDS, Query(_of("llava_run_eta_seconds", "stage"), "{{stage}}"), width=12),
    )  # fmt: skip


def _attempts() -> Row:
    return row(
        "Attempts, checkpoints and where the time went",
        graph("Attempts", "Number of each stage's newest attempt: a step up is a restart, or going on after a "
              "suspension.",
              COUNT, Query(_of("llava_run_attempt", "stage"), "{{stage}}")),
        bars("Attempts that ended without success", "By reason; docs/failures.md explains each.", COUNT,
             Query(_of("llava_run_attempts_ended", "reason"), "{{reason}}")),
        graph("Age of the newest checkpoint", "A saw: it falls whenever a checkpoint is complete. Teeth that grow are "
              "a volume that has become slow.", SECONDS,
              Query(f"time() - {_of('llava_run_checkpoint_timestamp_seconds')}", "age")),
        number("Productive", "Time of attempts that are over whose work was kept.", SECONDS,
               Query(_of("llava_run_productive_seconds")), steps=[(None, GREEN)], width=6),
        number("Lost", "Time of attempts that are over whose work was done again, or was for nothing.", SECONDS,
               Query(_of("llava_run_lost_seconds")), steps=[(None, GREEN), (1, YELLOW)], width=6),
        number("Queued", "Time in a queue of Kueue.", SECONDS, Query(_of("llava_run_queued_seconds")), width=6),
        number("Suspended", "Time for which somebody has suspended the run.", SECONDS,
               Query(_of("llava_run_suspended_seconds")), width=6),
    )  # fmt: skip


def _resources() -> Row:
    limits = _pods("kube_pod_container_resource_limits", _STAGE, 'resource="memory"')
    requests = _pods("kube_pod_container_resource_requests", _STAGE, 'resource="cpu"')
    working_set = _pods("container_memory_working_set_bytes", _STAGE)
    cpu = _pods("container_cpu_usage_seconds_total", _STAGE)
    return row(
        "Memory, processors and volume, beside the plan",
        graph("Memory of a GPU", "The most that torch has reserved on one GPU, beside what was planned (status.plan) "
              "and what the GPU has. Only on GPUs.", BYTES, Query(_of("llava_run_peak_gpu_memory_bytes"), "reserved "
              "at most"),
              Query(_of("llava_run_planned_gpu_memory_bytes"), "planned"),
              Query(_of("llava_run_available_gpu_memory_bytes"), "of the GPU"), width=12),
        graph("Memory of a pod", "Working set of each pod's container, beside what was planned for a training pod "
              "(without /dev/shm and caches) and the limit at which the kernel ends it.", BYTES,
              Query(f"max by (pod) ({working_set})", "{{pod}}"),
              Query(_of("llava_run_planned_pod_memory_bytes"), "planned"), Query(f"max({limits})", "limit"), width=12),
        graph("Processors of a pod", "Cores that each pod's container uses, beside what it asked for. Data loading "
              "that uses all of them holds the GPUs up.", COUNT,
              Query(f"sum by (pod) (rate({cpu}[$__rate_interval]))", "{{pod}}"), Query(f"max({requests})", "asked for"),
              width=12),
        graph("Volume", "Free on the run's volume and its size, as the reporting stage saw them. Checkpoints, results "
              "and the merged model must fit.", BYTES, Query(_of("llava_run_volume_free_bytes"), "free"),
              Query(_of("llava_run_volume_size_bytes"), "size"), width=12),
        graph("Pods", "Pods of the run in each phase, as the cluster sees them (finished ones stay until their Job "
              "goes).",
              COUNT, Query(f"sum by (phase) ({_pods('kube_pod_status_phase')} == 1)", "{{phase}}"), width=24,
              stacked=True, colors=OF_PHASES),
    )  # fmt: skip


def _gpus() -> Row:
    def gpus(metric: str, factor: str = "") -> Query:
        # The node's name has another label in each version of the exporter; a pod is on one node.
        return Query(f"max by (pod, gpu) ({_pods(metric)}){factor}", "{{pod}} GPU {{gpu}}")

    return row(
        "GPUs, where DCGM's exporter runs",
        graph("Utilisation", "Share of the time in which a kernel ran. High and slow at once: look at the tensor "
              "cores.",
              "percent", gpus("DCGM_FI_DEV_GPU_UTIL"), width=12, most=100),
        graph("Tensor cores", "Share of cycles in which the tensor cores worked: how well the GPU is used.", RATIO,
              gpus("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), width=12),
        graph("Memory", "Framebuffer in use, CUDA's own contexts included.", BYTES,
              gpus("DCGM_FI_DEV_FB_USED", " * 1024 * 1024")),
        graph("Power", "Watts that each GPU draws; far below its limit it waits for something.", "watt",
              gpus("DCGM_FI_DEV_POWER_USAGE")),
        graph("Temperature", "From about 85 degrees on most GPUs slow down.", "celsius", gpus("DCGM_FI_DEV_GPU_TEMP")),
        folded=True,
    )  # fmt: skip


def _results() -> Row:
    claim = volume_claim_name("$run")
    report = f"""\
The report of the evaluation is `evaluation/report.html` on the run's volume, claim `{claim}` in namespace
`$namespace`; the data's is `data/report.html`, and the tuned model lies in `merged/`. What else there is:

```
kubectl -n $namespace get lft $run -o jsonpath='{{.status.artifacts}}'
```

Where it was published, with the digest of it:

```
kubectl -n $namespace get lft $run -o jsonpath='{{.status.artifacts.published}}'
```

Why it failed, and what to do about it:

```
kubectl -n $namespace get lft $run -o jsonpath='{{.status.failure}}'
```
"""
    return row(
        "Results",
        bars("Scores", "Of the base and of the tuned model: on samples that training has not seen (validation), and, "
             "where spec.evaluation.trainingSamples asks for it, on some that it has (train).", RATIO,
             Query(_of("llava_run_score", "metric", "split", "model"), "{{metric}} {{split}} {{model}}"),
             width=12, most=1),
        note("Where the report lies", "Where the results are, as long as the run's volume is there.", report),
        rows_of("Gates", "What evaluation says of the tuned model where spec.evaluation.gate or retention asks, by the "
                "gain (tuned less base) and its 95 % interval: whether it lies above the limit (Passed), below it "
                "(Failed), or the questions are too few to say (Undecided).",
                [Query(f"{_of('llava_run_gate_outcome', 'gate', 'outcome')} == 1"),
                 Query(_of("llava_run_gate_gain", "gate", matchers=('bound="value"',))),
                 Query(_of("llava_run_gate_gain", "gate", matchers=('bound="low"',))),
                 Query(_of("llava_run_gate_gain", "gate", matchers=('bound="high"',))),
                 Query(_of("llava_run_gate_limit", "gate"))],
                [Column("Gate", "gate"), Column("Says", "outcome"), Column("Gain", "Value #B", RATIO),
                 Column("At least", "Value #C", RATIO), Column("At most", "Value #D", RATIO),
                 Column("Limit", "Value #E", RATIO)],
                height=5),
        rows_of("Published", "What stands where spec.publish names (s3, hf, oci or pvc), and how large it is. Nothing "
                "here: it is not published yet, a gate has held it back (stage publish is Skipped), or nobody has "
                "asked for it.",
                [Query(_of("llava_run_published_bytes", "scheme", "what"))],
                [Column("Where", "scheme"), Column("What", "what"), Column("Size", "Value", BYTES)],
                height=5),
    )  # fmt: skip


def _moments() -> list[Moments]:
    begun = _of("llava_run_attempt_start_timestamp_seconds", "stage")
    return [
        Moments(title="Stages begun", text="{{stage}} begins", color=BLUE,
                expression=f"{begun} and on (stage) {_of('llava_run_attempt', 'stage')} == 1"),
        Moments(title="Restarts", text="{{stage}}: another attempt begins", color=RED,
                expression=f"{begun} and on (stage) {_of('llava_run_attempt', 'stage')} > 1"),
        Moments(title="End", text="the run ends", color=GREEN,
                expression=_of("llava_run_completion_timestamp_seconds")),
        Moments(title="Checkpoints", text="a checkpoint is complete", color=YELLOW, shown=False,
                expression=_of("llava_run_checkpoint_timestamp_seconds")),
    ]  # fmt: skip


def build_run() -> models.Dashboard:
    """The dashboard about one run."""
    return build(
        RUN,
        "One run: how far it is, how it learns, what it takes beside what was planned, and where its report lies.",
        since="now-6h",
        variables=[
            choice("namespace", "Namespace", "label_values(llava_run_phase, namespace)"),
            choice("run", "Run", 'label_values(llava_run_phase{namespace="$namespace"}, name)'),
        ],
        rows=[_stands(), _learning(), _attempts(), _resources(), _gpus(), _results()],
        moments=_moments(),
    )
