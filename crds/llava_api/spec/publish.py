"""Where the result goes when it is good enough."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.constants import MODELCAR_SUFFIX
from llava_api.rules import rule, rules
from llava_api.spec.values import Resources, SecretRef, make_resources

MAX_DESTINATIONS = 4
_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_PART = "[A-Za-z0-9_][A-Za-z0-9._-]*"
_COMPONENT = "[a-z0-9]+([._-]+[a-z0-9]+)*"

PublishAddress = Annotated[
    str,
    Field(
        min_length=8,
        max_length=256,
        json_schema_extra=rules(
            rule(
                "self.matches('^(s3|hf|oci|pvc)://')",
                "a destination must begin with s3://, hf://, oci:// or pvc://",
            ),
            rule(
                f"!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/{_PART})+$')",
                "a destination in a bucket must be s3://BUCKET/FOLDER: a bucket and a folder in it, of letters, "
                "digits, _, . and -, without a / at the end",
            ),
            rule(
                f"!self.startsWith('hf://') || self.matches('^hf://{_NAME}/{_NAME}(@[A-Za-z0-9][A-Za-z0-9._-]*)?$')",
                "a destination on the hub must be hf://OWNER/NAME or hf://OWNER/NAME@BRANCH",
            ),
            rule(
                "!self.startsWith('oci://') || "
                f"self.matches('^oci://[a-z0-9.-]+(:[0-9]+)?(/{_COMPONENT})+:[A-Za-z0-9_][A-Za-z0-9._-]{{0,99}}$')",
                "a destination in a registry must be oci://REGISTRY/REPOSITORY:TAG, the repository in lower case",
            ),
            rule(
                f"!(self.startsWith('oci://') && self.endsWith('{MODELCAR_SUFFIX}'))",
                f"a destination's tag must not end in {MODELCAR_SUFFIX}: beside each TAG the model stands as an image "
                f"under TAG{MODELCAR_SUFFIX}, which one would take from the other",
            ),
            rule(
                "!self.startsWith('pvc://') || "
                f"self.matches('^pvc://[a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?(/{_PART})+$')",
                "a destination on a claim must be pvc://CLAIM/FOLDER: a PersistentVolumeClaim of the run's namespace "
                "and a folder in it, of letters, digits, _, . and -, without a / at the end",
            ),
        ),
    ),
]
"""Where a model is published to.

- ``s3://BUCKET/FOLDER``: the model's files as objects below the folder.
- ``hf://OWNER/NAME[@BRANCH]``: a model repository of the hub, in one commit.
- ``oci://REGISTRY/REPOSITORY:TAG``: a model artifact in a registry.
- ``pvc://CLAIM/FOLDER``: a folder of a claim.
"""


class Destination(Strict):
    """A place to publish to."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!self.plainHttp || self.address.startsWith('oci://') && !has(self.secretRef)",
                "plainHttp is for a registry (oci://) that asks for no password: who is on the way would read it; "
                "leave plainHttp or secretRef out",
                field=".plainHttp",
            ),
            rule(
                "!has(self.secretRef) || !self.address.startsWith('pvc://')",
                "a claim (pvc://) needs no Secret: leave secretRef out",
                field=".secretRef",
            ),
        )
    )

    address: Annotated[
        PublishAddress,
        Field(
            description="s3://BUCKET/FOLDER, hf://OWNER/NAME[@BRANCH], oci://REGISTRY/REPOSITORY:TAG or "
            "pvc://CLAIM/FOLDER. What others have put there is left as it is, and the run fails; so it is with another "
            "run's model in a bucket and on a claim, while a hub and a registry keep that in their history, or under "
            "its digest."
        ),
    ]
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials, mounted in the publish pod only. Keys: token (hf); accessKeyId, "
            "secretAccessKey, sessionToken, endpoint, region (s3); username, password or .dockerconfigjson (oci). "
            "Left out: those that the pod's ServiceAccount has (s3), or none."
        ),
    ] = None
    plain_http: Annotated[
        bool, Field(description="Whether a registry is reached by plain HTTP: for one in the cluster.")
    ] = False


class Publish(Strict):
    """The stage that hands the result on, where a gate has let it pass or none is asked for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.what != 'both' || !self.destinations.exists(one, one.address.startsWith('oci://') && "
                "self.destinations.exists(other, other.address == one.address + '-adapter'))",
                "with what both the adapter has the tag TAG-adapter, which is another destination's here: choose "
                "another tag",
                field=".destinations",
            )
        )
    )

    destinations: Annotated[
        tuple[Destination, ...],
        Field(
            min_length=1,
            max_length=MAX_DESTINATIONS,
            description="Where to, one after the other. A destination that is served already stays as it is.",
            json_schema_extra=rules(
                rule(
                    "self.all(one, self.exists_one(other, other.address in [one.address, one.address + '@main']))",
                    "each destination may stand there once (a hub's branch is main where none is named): leave one of "
                    "them out",
                ),
                rule(
                    "!self.exists(one, self.exists(other, other.address.startsWith(one.address + '/')))",
                    "no destination may lie in the folder of another, which holds the model's files and nothing else: "
                    "name folders side by side",
                ),
            ),
        ),
    ]
    what: Annotated[
        Literal["merged", "adapter", "both"],
        Field(
            description="merged: the merged model, which every server takes. adapter: the LoRA adapter alone, for "
            "servers that load adapters beside the base; those refuse one whose projector was trained "
            "(training.projector frozen leaves it). both: the merged model, and the adapter in its folder adapter/ "
            "(oci: under TAG-adapter)."
        ),
    ] = "merged"
    license: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
            description="Licence that the model card names, as the hub or SPDX has it (llama2, apache-2.0). Left out: "
            "the card says that the base's licence holds.",
        ),
    ] = None
    signing: Annotated[
        SecretRef | None,
        Field(
            description="Secret whose key privateKey is an elliptic-curve private key (PEM, unencrypted) that signs "
            "what is published. Left out: nothing is signed."
        ),
    ] = None
    resources: Annotated[Resources, Field(description="Resources of its pod. It runs on the CPU.")] = make_resources(
        "1", "2Gi"
    )
