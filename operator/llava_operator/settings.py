"""The operator's settings: read from the environment once, in ``main``, and handed on as a value."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from llava_api.addresses import ANYTHING
from llava_api.spec import Download, SecretRef
from llava_operator.cache.runs import TEAM_LABEL
from llava_operator.deciding.policy import (
    ALLOWED_DESTINATION,
    ALLOWED_HOST,
    ALLOWED_NAME,
    ALLOWED_REPOSITORY,
    PUBLIC_HUB,
    Policy,
    check_entries,
)
from llava_operator.pod_metadata import check_annotations, check_key, check_labels, read_json_object

PREFIX = "LLAVA_OPERATOR_"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Address = Annotated[str, Field(max_length=512)]


def _entries(pattern: str, right: str) -> AfterValidator:
    """Every entry of a policy's list is one of these; the message says what would be."""

    def check(entries: tuple[str, ...]) -> tuple[str, ...]:
        check_entries(entries, pattern, right)
        return entries

    return AfterValidator(check)


_NAMES = _entries(ALLOWED_NAME, "a name, in which * stands for any part")
_HOSTS = _entries(ALLOWED_HOST, "HOST or HOST:PORT in lower case, without https://, or *")


class SettingsError(Exception):
    """The environment does not describe an operator; the message names every variable at fault."""


class Settings(BaseModel):
    """One field for each environment variable: ``LLAVA_OPERATOR_`` and the field's name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: Annotated[Name, Field(description="The operator's own namespace.")]
    pod_name: Annotated[Name, Field(description="Name of this pod: its identity in the Lease.")]
    pod_ip: Annotated[
        str, Field(min_length=1, max_length=64, description="Address at which trainers reach this pod's endpoint.")
    ]
    trainer_image: Annotated[
        str, Field(min_length=1, max_length=512, description="Image of runs that name none in spec.image.reference.")
    ]
    image: Annotated[
        str,
        Field(max_length=512, description="The operator's own image, from which notifications are sent; empty = none."),
    ] = ""
    image_pull_policy: Annotated[
        Literal["IfNotPresent", "Always", "Never"], Field(description="When pods that send notifications pull it.")
    ] = "IfNotPresent"
    name: Annotated[
        str, Field(min_length=1, max_length=50, description="Name of the installation; Lease, Secret, Service follow.")
    ] = "llava-finetune-operator"
    watch_namespaces: Annotated[
        tuple[str, ...], Field(description="Namespaces to serve, separated by commas; empty = all of them.")
    ] = ()
    http_port: Annotated[Port, Field(description="Plain HTTP: /healthz, /readyz, /metrics.")] = 8080
    report_port: Annotated[Port, Field(description="TLS: progress reports. The Service has the same port.")] = 8443
    metrics_secure: Annotated[
        bool,
        Field(description="Whether /metrics is served over TLS at metrics_port, to those who may get it by the "
                          "cluster's rules, and no longer plainly at http_port."),
    ] = False  # fmt: skip
    metrics_port: Annotated[Port, Field(description="TLS: /metrics, with metrics_secure.")] = 8444
    metrics_certificate_secret: Annotated[
        str,
        Field(
            max_length=253,
            description="Secret of the operator's namespace with the certificate of that port (tls.crt, tls.key), "
            "read again every resync_seconds; empty = one that the reporting endpoint's authority signs.",
        ),
    ] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="What to log.")] = "info"
    passes: Annotated[int, Field(ge=1, le=64, description="Passes over different runs at the same time.")] = 4
    pass_timeout_seconds: Annotated[
        Seconds, Field(description="Longest a pass may take; it is then given up and tried again.")
    ] = 60
    resync_seconds: Annotated[
        Seconds,
        Field(description="Time between two relists of runs and children. They heal what a lost event left behind; "
                          "events make everything happen sooner."),
    ] = 60  # fmt: skip
    request_timeout_seconds: Annotated[Seconds, Field(description="Longest wait for the API server.")] = 20
    progress_interval_seconds: Annotated[
        Seconds, Field(description="Shortest time between two writes of one run's progress.")
    ] = 15
    progress_writes_per_second: Annotated[
        float, Field(gt=0, le=1000, description="Most progress writes a second over all runs.")
    ] = 5
    lease_duration_seconds: Annotated[
        Seconds, Field(description="Time after which others may take a Lease that is not renewed.")
    ] = 15
    lease_renew_deadline_seconds: Annotated[
        Seconds, Field(description="Time after which a leader that cannot renew ends; shorter than the duration.")
    ] = 10
    lease_retry_seconds: Annotated[Seconds, Field(description="Time between two tries to take or renew it.")] = 2
    heartbeat_seconds: Annotated[
        Seconds,
        Field(description="Time between two heartbeats through the queue; six missing ones, beyond a pass's time, are "
                          "unhealthy."),
    ] = 10  # fmt: skip
    watch_timeout_seconds: Annotated[
        int, Field(ge=1, le=3600, description="Time after which the API server ends a watch and it is begun anew.")
    ] = 300
    watch_inactivity_seconds: Annotated[
        Seconds, Field(description="Silence after which a watch counts as dead; bookmarks come once a minute.")
    ] = 70

    hub_endpoint: Annotated[
        Address, Field(description="Address of the hub for runs that name none; empty = huggingface.co.")
    ] = ""
    http_proxy: Annotated[
        Address, Field(description="Proxy by which runs that name none fetch http addresses; empty = none.")
    ] = ""
    https_proxy: Annotated[
        Address, Field(description="Proxy by which runs that name none fetch https addresses; empty = none.")
    ] = ""
    no_proxy: Annotated[
        str, Field(max_length=2048, description="Hosts that these runs reach without proxy, separated by commas.")
    ] = ""
    download_ca_config_map: Annotated[
        str,
        Field(
            max_length=253,
            description="ConfigMap of a run's namespace whose key ca.crt holds further authorities, where the run "
            "names none and the namespace has it; empty = none.",
        ),
    ] = ""

    download_secret: Annotated[
        str,
        Field(
            max_length=253,
            description="Secret of a run's namespace with proxies that have a password (keys httpProxy, httpsProxy), "
            "where the run names none and the namespace has it; empty = none.",
        ),
    ] = ""

    download_xet: Annotated[
        bool,
        Field(description="Whether files that a hub keeps in Xet are read by Xet's own client, which knows nothing of "
                          "proxies and authorities (docs/security.md)."),
    ] = False  # fmt: skip

    isolate_training: Annotated[
        bool, Field(description="Whether a NetworkPolicy lets only pods of the same run and stage reach training pods.")
    ] = False

    node_loss_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="Seconds for which pods of runs stay on a node that is not ready or cannot be reached, where "
            "spec.scheduling.tolerations says nothing about it.",
        ),
    ] = 30
    stage_pod_labels: Annotated[
        dict[str, str], AfterValidator(check_labels), Field(description="Labels of the pods of runs, as a JSON object.")
    ] = {}
    stage_pod_annotations: Annotated[
        dict[str, str], AfterValidator(check_annotations), Field(description="The same, annotations.")
    ] = {}

    metrics_team_label: Annotated[
        str,
        AfterValidator(lambda key: key and check_key(key)),
        Field(description="Label of runs whose value llava_run_info tells as their team; empty = none."),
    ] = TEAM_LABEL
    metrics_finished_run_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=31_536_000,
            description="Time for which /metrics goes on telling of runs that have ended. What was scraped stays in "
            "Prometheus; a resource that is kept for months would be as many series as one that trains.",
        ),
    ] = 3600

    # What runs may ask for (``policy``). Each list is separated by commas; ``*`` allows all, and empty nothing.
    policy_image_repositories: Annotated[
        tuple[str, ...],
        _entries(
            ALLOWED_REPOSITORY,
            "REGISTRY or REGISTRY/PATH in lower case (Docker's own: docker.io/library/NAME) without a tag, or *",
        ),
        Field(description="Repositories from which runs may take their image, and all below them. The trainer image is "
                          "always allowed."),
    ] = (ANYTHING,)  # fmt: skip
    policy_secret_names: Annotated[
        tuple[str, ...], _NAMES, Field(description="Names of the Secrets that runs may name.")
    ] = (ANYTHING,)  # fmt: skip
    policy_ca_config_maps: Annotated[
        tuple[str, ...], _NAMES, Field(description="Names of the ConfigMaps that runs may take authorities from.")
    ] = (ANYTHING,)  # fmt: skip
    policy_hub_token_hosts: Annotated[
        tuple[str, ...],
        _HOSTS,
        Field(description="Hosts to which tokens of a hub may be sent, besides that of hub_endpoint."),
    ] = (PUBLIC_HUB,)
    policy_web_credential_hosts: Annotated[
        tuple[str, ...], _HOSTS, Field(description="Hosts to which credentials of https:// sources may be sent.")
    ] = (ANYTHING,)  # fmt: skip
    policy_picture_hosts: Annotated[
        tuple[str, ...],
        _HOSTS,
        Field(description="Hosts from which prepare may fetch pictures that a dataset names by http or https address."),
    ] = ()
    policy_notification_hosts: Annotated[
        tuple[str, ...], _HOSTS, Field(description="Hosts to which notifications may be sent.")
    ] = (ANYTHING,)
    policy_tracking_hosts: Annotated[
        tuple[str, ...], _HOSTS, Field(description="Hosts of tracking servers that training pods may tell the curve.")
    ] = (ANYTHING,)
    policy_publish_destinations: Annotated[
        tuple[str, ...],
        _entries(
            ALLOWED_DESTINATION,
            "s3://BUCKET, hf://OWNER, oci://REGISTRY or pvc://CLAIM, or a folder or repository below it, without a tag "
            "or branch, or *",
        ),
        Field(description="Places that runs may publish to, and all below them."),
    ] = (ANYTHING,)  # fmt: skip
    policy_insecure_notifications: Annotated[
        bool, Field(description="Whether notifications may be sent by plain HTTP.")
    ] = False
    policy_tolerations: Annotated[bool, Field(description="Whether runs may tolerate taints.")] = True
    policy_service_account_names: Annotated[
        tuple[str, ...], _NAMES, Field(description="Names of the ServiceAccounts that pods of runs may run as.")
    ] = ()

    @field_validator("stage_pod_labels", "stage_pod_annotations", mode="before")
    @classmethod
    def _read_json(cls, value: Any) -> Any:
        return read_json_object(value) if isinstance(value, str) else value

    @field_validator(
        "watch_namespaces",
        "policy_image_repositories",
        "policy_secret_names",
        "policy_ca_config_maps",
        "policy_hub_token_hosts",
        "policy_web_credential_hosts",
        "policy_picture_hosts",
        "policy_notification_hosts",
        "policy_tracking_hosts",
        "policy_publish_destinations",
        "policy_service_account_names",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value

    @property
    def download(self) -> Download:
        """How the sources of runs are fetched that do not say."""
        return Download(
            hub_endpoint=self.hub_endpoint or None,
            http_proxy=self.http_proxy or None,
            https_proxy=self.https_proxy or None,
            no_proxy=self.no_proxy or None,
            ca_config_map=self.download_ca_config_map or None,
            secret_ref=SecretRef(name=self.download_secret) if self.download_secret else None,
        )

    @property
    def policy(self) -> Policy:
        """What runs may ask for."""
        return Policy(
            trainer_image=self.trainer_image,
            hub_endpoint=self.hub_endpoint,
            image_repositories=self.policy_image_repositories,
            secret_names=self.policy_secret_names,
            ca_config_maps=self.policy_ca_config_maps,
            hub_token_hosts=self.policy_hub_token_hosts,
            web_credential_hosts=self.policy_web_credential_hosts,
            picture_hosts=self.policy_picture_hosts,
            notification_hosts=self.policy_notification_hosts,
            tracking_hosts=self.policy_tracking_hosts,
            publish_destinations=self.policy_publish_destinations,
            insecure_notifications=self.policy_insecure_notifications,
            tolerations=self.policy_tolerations,
            service_account_names=self.policy_service_account_names,
        )

    @property
    def lease_name(self) -> str:
        """Lease by which replicas elect a leader; the operator creates it."""
        return self.name

    @property
    def report_service(self) -> str:
        """Service without selector; the leader writes an EndpointSlice of this name for it."""
        return f"{self.name}-report"

    @property
    def report_secret(self) -> str:
        """Secret with the reporting endpoint's certificate authority, created empty by the installer."""
        return f"{self.name}-report-ca"

    @property
    def report_host(self) -> str:
        """Name under which trainers reach the endpoint."""
        return f"{self.report_service}.{self.namespace}.svc"

    @property
    def metrics_host(self) -> str:
        """Name under which Prometheus reaches the metrics."""
        return f"{self.name}-metrics.{self.namespace}.svc"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read every variable that begins with ``LLAVA_OPERATOR_``.

        Raises:
            SettingsError: a variable is missing, unknown or has a value that makes no sense.
        """
        values = {key.removeprefix(PREFIX).lower(): value for key, value in environ.items() if key.startswith(PREFIX)}
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            faults = (f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors())
            raise SettingsError("; ".join(faults)) from None
        times = (settings.lease_retry_seconds, settings.lease_renew_deadline_seconds, settings.lease_duration_seconds)
        if not times[0] < times[1] < times[2]:
            raise SettingsError(
                f"{PREFIX}LEASE_RETRY_SECONDS, _LEASE_RENEW_DEADLINE_SECONDS and _LEASE_DURATION_SECONDS are "
                f"{times[0]:g}, {times[1]:g} and {times[2]:g}, but each must be greater than the one before: "
                "else two pods lead at once"
            )
        return settings
