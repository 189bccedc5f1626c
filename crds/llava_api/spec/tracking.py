"""Who else is told the curve of training."""

from typing import Annotated

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.rules import rule, rules
from llava_api.spec.values import SecretRef

TrackerAddress = Annotated[
    str,
    Field(
        min_length=8,
        max_length=1024,
        json_schema_extra=rules(
            rule(
                "self.matches('^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$')",
                "url must be https://HOST/PATH, without user name, password, ? and #: credentials belong in a Secret "
                "(secretRef)",
            )
        ),
    ),
]


class TensorBoard(Strict):
    """Event files on the run's volume. There is nothing to set."""


class Mlflow(Strict):
    """A tracking server of MLflow, by its REST interface."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.secretRef) || self.url.startsWith('https://')",
                "mlflow.url must begin with https:// where mlflow.secretRef names a Secret: who is on the way would "
                "read it; use https or remove secretRef",
                field=".url",
            )
        )
    )

    url: Annotated[
        TrackerAddress,
        Field(
            description="Address of the server, like https://mlflow.example, at a host that the installation allows "
            "(policy.trackingHosts). http:// is for servers in the cluster, which are reached directly, never by a "
            "proxy."
        ),
    ]
    experiment: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            json_schema_extra=rules(rule("self.matches('^[ -~]+$')", "experiment must be printable ASCII")),
            description="Name of the experiment.",
        ),
    ]
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials, mounted in training pods only. Keys: bearer, or username and password. Left out: "
            "none are sent."
        ),
    ] = None


class Wandb(Strict):
    """A run of Weights & Biases: on the volume, to be synced by hand, or with a key at its server."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.secretRef) || self.url.startsWith('https://')",
                "wandb.url must begin with https:// where wandb.secretRef names a Secret: who is on the way would read "
                "the key",
                field=".url",
            )
        )
    )

    project: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            json_schema_extra=rules(
                rule("self.matches('^[A-Za-z0-9_.-]+$')", "project must consist of letters, digits, _, . and -")
            ),
            description="Name of the project.",
        ),
    ]
    entity: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            json_schema_extra=rules(
                rule("self.matches('^[A-Za-z0-9_.-]+$')", "entity must consist of letters, digits, _, . and -")
            ),
            description="User or team that the project belongs to. Left out: the default one of whoever syncs.",
        ),
    ] = None
    url: Annotated[
        TrackerAddress,
        Field(
            description="Address of the server that a key is for, at a host that the installation allows "
            "(policy.trackingHosts). Nothing is sent there without secretRef."
        ),
    ] = "https://api.wandb.ai"
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Secret with the key of the API as apiKey, mounted in training pods only. Left out: nothing "
            "leaves the pod; the run is written to wandb/ on the run's volume (wandb-align/ in phase 1), for "
            "`wandb sync` to upload."
        ),
    ] = None


class Tracking(Strict):
    """Experiment trackers. None of them holds training up or ends it."""

    tensorboard: Annotated[
        TensorBoard | None,
        Field(
            description="Write TensorBoard's event files to tensorboard/ on the run's volume (tensorboard-align/ in "
            "phase 1)."
        ),
    ] = None
    mlflow: Annotated[
        Mlflow | None,
        Field(description="Tell a server of MLflow."),
    ] = None
    wandb: Annotated[
        Wandb | None,
        Field(description="Write a run of Weights & Biases, or with a key tell its server."),
    ] = None
