"""Where models and datasets come from."""

from typing import Annotated

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.rules import rule, rules
from llava_api.spec.values import SecretRef

_NAME = "[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"

Source = Annotated[
    str,
    Field(
        min_length=7,
        max_length=1024,
        json_schema_extra=rules(
            rule(
                "!self.startsWith('pvc://') || self.matches('^pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/.*)?$')",
                "a source on a claim must be pvc://CLAIM/PATH: a PersistentVolumeClaim of the run's namespace and a "
                "folder in it",
            ),
            rule(
                f"!self.startsWith('hf://') || self.matches('^hf://{_NAME}/{_NAME}(@[A-Za-z0-9][A-Za-z0-9._/-]*)?$')",
                "a source on the hub must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION: a repository, and a branch, "
                "tag or commit of it",
            ),
            rule(
                "!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$')",
                "a source in a bucket must be s3://BUCKET/PREFIX: a bucket and the folder in it",
            ),
            rule(
                "!self.startsWith('https://') || "
                "self.matches('^https://[A-Za-z0-9.-]+(:[0-9]+)?/[^#@]*(#sha256=[0-9a-f]{64})?$')",
                "a source behind https must be https://HOST/PATH, optionally followed by #sha256=DIGEST; credentials "
                "belong in a Secret",
            ),
            rule(
                "!self.matches('^https://huggingface[.]co/(datasets/)?[^/]+/[^/]+(/tree/.*)?/?$')",
                "a page of the hub is no source: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
            ),
            rule(
                "!self.startsWith('https://') || "
                "self.matches('^[^?#]*(/|[.](zip|tar|tar[.]gz|tgz|bin|safetensors))([?][^#]*)?(#.*)?$')",
                "a source behind https must end with .zip, .tar, .tar.gz or .tgz (an archive), with .bin or "
                ".safetensors (weights of a projector), or with / (a folder)",
            ),
            rule(
                "!self.startsWith('https://') || !self.matches('^[^?#]*/([?][^#]*)?#')",
                "a source behind https must not end with #sha256= where it is a folder: name an archive, or remove the "
                "digest",
            ),
            rule(
                "self.matches('^(pvc|hf|s3|https)://')",
                "a source must begin with pvc://, hf://, s3:// or https://; a folder of a claim is pvc://CLAIM/PATH, "
                "a repository of the hub hf://OWNER/NAME",
            ),
            rule("!self.matches('/[.][.](/|$)')", "a source must not contain .. parts: name the folder itself"),
        ),
    ),
]
"""Where a model or a dataset comes from; ``pvc://`` ones are read in place.

- ``pvc://CLAIM/PATH``: mounted read-only and read in place.
- ``hf://OWNER/NAME[@REVISION]``: a repository of the Hugging Face hub, fetched once into the run's volume. The revision
  is resolved to a commit once a run.
- ``s3://BUCKET/PREFIX``: the objects below the prefix that are needed, fetched once; without a Secret anonymously.
- ``https://HOST/PATH[#sha256=DIGEST]``: an archive (.zip, .tar, .tar.gz) that is unpacked, or, ending with ``/``, a
  folder from which the files that are needed are fetched by name.
"""


class Download(Strict):
    """How models and datasets that are not on a claim are fetched. The operator's own settings where left out."""

    hub_endpoint: Annotated[
        str | None,
        Field(max_length=512, description="Address of the hub for hf:// sources; huggingface.co if left out."),
    ] = None
    http_proxy: Annotated[
        str | None,
        Field(max_length=512, description="Proxy for http addresses, like http://proxy.example:3128. Who may read the "
                                          "run reads it, too: with a password it belongs in secretRef."),
    ] = None  # fmt: skip
    https_proxy: Annotated[
        str | None,
        Field(max_length=512, description="Proxy for https addresses; hub, S3 and files alike. With a password "
                                          "it belongs in secretRef.")
    ] = None  # fmt: skip
    no_proxy: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="Hosts, domains (.svc) and networks (10.0.0.0/8) that are reached without proxy, separated by "
            "commas.",
        ),
    ] = None
    ca_config_map: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            description="ConfigMap of the run's namespace whose key ca.crt holds further certificate authorities "
            "(PEM) to trust.",
        ),
    ] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Proxies whose addresses hold a password, mounted as files in prepare and in pods that send "
            "notifications only. Keys: httpProxy, httpsProxy, each as the field of that name, which comes first where "
            "both are set."
        ),
    ] = None


class Model(Strict):
    """The model to start from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.source) != has(self.languageModel)",
                "set either source (a LLaVA v1.5 checkpoint) or languageModel and visionTower (to join them by a "
                "projector)",
            ),
            rule(
                "!has(self.languageModel) || has(self.visionTower)",
                "languageModel needs visionTower: name the CLIP model whose pictures the projector translates",
                field=".visionTower",
            ),
            rule(
                "!has(self.base) || has(self.source)",
                "base goes with source: it is the language model that a delta, LoRA or projector folder in source is "
                "applied to",
                field=".base",
            ),
        )
    )

    source: Annotated[
        Source | None,
        Field(
            description="A LLaVA v1.5 checkpoint: in hub layout (as llava-hf/llava-1.5-7b-hf) or in the layout of the "
            "original code (as liuhaotian/llava-v1.5-7b), which prepare converts. pvc://CLAIM/PATH is mounted "
            "read-only and read in place; hf://OWNER/NAME@REVISION, s3://BUCKET/PREFIX and https:// are fetched once."
        ),
    ] = None
    base: Annotated[
        Source | None,
        Field(
            description="Language model that source is applied to, where source is a delta, LoRA or mm_projector "
            "folder of the original code."
        ),
    ] = None
    language_model: Annotated[
        Source | None,
        Field(
            description="Instead of source: a Llama or Vicuna checkpoint, to join with visionTower by a fresh "
            "projector, which alignment trains, or by the one in projector."
        ),
    ] = None
    vision_tower: Annotated[
        Source | None,
        Field(
            description="CLIP ViT checkpoint. Needed with languageModel, and with a checkpoint in the original layout "
            "that does not carry its tower."
        ),
    ] = None
    projector: Annotated[
        Source | None,
        Field(
            description="Aligned projector to start from instead of the model's own: the projector folder of another "
            "run, or an mm_projector.bin of the original code."
        ),
    ] = None
    adapter: Annotated[
        Source | None,
        Field(
            description="Adapter to go on from, with the projector that it brings, instead of a fresh one: the adapter "
            "folder of an earlier run (pvc://CLAIM/adapter), or any LoRA that PEFT has saved of this model. The run "
            "makes one adapter of both on the same base, so training.lora must be as in the adapter. With "
            "training.method none nothing is trained: the adapter is merged, and compared with the base."
        ),
    ] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials for all of the above, mounted as files in prepare only. Keys: token (hf), "
            "accessKeyId, secretAccessKey, sessionToken, endpoint, region (s3), username and password or bearer "
            "(https)."
        ),
    ] = None

    @property
    def sources(self) -> dict[str, str]:
        """Every source that is set, by the field's name in the manifest, in the manifest's order."""
        named = (
            ("source", self.source), ("base", self.base), ("languageModel", self.language_model),
            ("visionTower", self.vision_tower), ("projector", self.projector), ("adapter", self.adapter),
        )  # fmt: skip
        return {name: source for name, source in named if source is not None}
