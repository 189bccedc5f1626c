"""The ConfigMaps of a stage: its run configuration, and the authority that its reports trust."""

from pathlib import Path, PurePosixPath

from llava_api.constants import (
    CONFIG_PATH,
    RENDEZVOUS_PORT,
    REPORT_CA_PATH,
    REPORT_TOKEN_PATH,
    SecretRole,
    StageName,
)
from llava_api.names import report_ca_name
from llava_api.run_config import RUN_CONFIG_VERSION, Reporting, RunConfig, RunIdentity, WorkerLayout
from llava_api.spec import Download, Evaluation
from llava_operator.build.common import Platform, build_labels, build_metadata
from llava_operator.build.inputs import complete_download, dataset_dir, model_dir
from llava_operator.build.service import rendezvous_host
from llava_operator.credentials import goes_out
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt, Run, ended_attempts

CONFIG_KEY = PurePosixPath(CONFIG_PATH).name
CA_KEY = PurePosixPath(REPORT_CA_PATH).name


def build_run_config(attempt: Attempt, platform: Platform) -> RunConfig:
    """All that a stage is told. The layout is that of training in every stage; the device is the stage's own.

    Prepare gets version 1, which every image understands; the stages after it the version that it has reported.
    """
    run, spec, stage = attempt.run, attempt.spec, attempt.stage
    second = spec.evaluation.retention
    is_first_version = stage.name is StageName.PREPARE or attempt.settings.config_version == 1
    return RunConfig(
        version=1 if is_first_version else RUN_CONFIG_VERSION,
        results={} if is_first_version else ended_attempts(run.status),
        run=RunIdentity(
            namespace=run.key.namespace, name=run.key.name, uid=run.uid, stage=stage.name, attempt=attempt.number
        ),
        volume_root=run.volume_root,
        model_dir=model_dir(run),
        dataset_dir=dataset_dir(run, spec.dataset.source, SecretRole.DATASET),
        alignment_dir=(
            dataset_dir(run, spec.alignment.dataset.source, SecretRole.ALIGNMENT_DATASET) if spec.alignment else None
        ),
        mixture_dirs=tuple(
            dataset_dir(run, part.dataset.source, SecretRole.of_mixture(index))
            for index, part in enumerate(spec.mixture)
        ),
        model=spec.model,
        dataset=spec.dataset,
        retention_dir=dataset_dir(run, second.dataset.source, SecretRole.RETENTION) if second is not None else None,
        mixture=spec.mixture,
        alignment=spec.alignment,
        training=spec.training,
        workers=WorkerLayout(
            num_nodes=spec.workers.replicas,
            processes_per_node=max(spec.workers.gpus, 1),
            device="cuda" if attempt.num_gpus else "cpu",
            rendezvous_host=rendezvous_host(attempt),
            rendezvous_port=RENDEZVOUS_PORT,
            grace_period_seconds=attempt.grace_period_s,
        ),
        # Only who goes out is told how: a proxy's address may hold a password.
        download=complete_download(spec.download, platform.download) if goes_out(spec, stage) else Download(),
        merge=spec.merge,
        evaluation=_older(spec.evaluation),
        # Evaluation's report says how the model is served from there. An image that does not know it is refused before.
        publish=spec.publish if stage.publishes or stage.name is StageName.EVALUATE else None,
        image=(spec.image.reference or platform.trainer_image) if stage.publishes else None,
        reporting=Reporting(url=platform.report_url, ca_file=Path(REPORT_CA_PATH), token_file=Path(REPORT_TOKEN_PATH)),
    )


def _older(evaluation: Evaluation) -> Evaluation:
    """The same with GPUs as every image reads them; the new field is written only where there are several pods."""
    workers = evaluation.workers.model_copy(update={"gpus": None})
    return evaluation.model_copy(update={"gpus": evaluation.num_gpus, "workers": workers})


def build_config_map(attempt: Attempt, platform: Platform) -> Object:
    """The ConfigMap with the run configuration of one attempt."""
    config = build_run_config(attempt, platform)
    labels = build_labels(attempt.run, attempt.stage.name, attempt.number)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(attempt.run, attempt.job, labels),
        "immutable": True,
        "data": {CONFIG_KEY: config.model_dump_json(indent=2)},
    }


def build_report_ca(run: Run, certificate: str) -> Object:
    """The ConfigMap with the reporting endpoint's authority (PEM); it changes when the authority does."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(run, report_ca_name(run.key.name), build_labels(run)),
        "data": {CA_KEY: certificate},
    }
