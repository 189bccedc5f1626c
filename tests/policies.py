"""One table of what installations refuse: it drives the operator's own check and the chart's admission policy.

Installations are chart values. A case is what a run changes in a small valid spec, and how its refusal begins; None
where it is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_api.constants import API_VERSION, KIND
from llava_operator.deciding.policy import Policy
from llava_operator.settings import Settings

TRAINER = "registry.example/ours/trainer:1"
_OWN_IMAGE = {"trainerImage": {"repository": "registry.example/ours/trainer", "tag": "1"}}
EVERYTHING: dict[str, Any] = {
    **_OWN_IMAGE,
    "policy": {
        "imageRepositories": ["*"], "secretNames": ["*"], "caConfigMaps": ["*"], "hubTokenHosts": ["*"],
        "webCredentialHosts": ["*"], "notificationHosts": ["*"], "insecureNotifications": True, "tolerations": True,
        "serviceAccountNames": ["*"], "pictureHosts": ["*"], "trackingHosts": ["*"], "publishDestinations": ["*"],
    },
}  # fmt: skip
INSTALLATIONS: dict[str, dict[str, Any]] = {
    "usual": _OWN_IMAGE,
    "strict": {
        **_OWN_IMAGE,
        "policy": {
            "imageRepositories": [
                "registry.example/team", "registry.example:5000/team", "docker.io/library/llava", "docker.io/mine",
                "localhost", "ghcr.io",
            ],
            "secretNames": ["llava-*", "registry.pull"],
            "caConfigMaps": ["corporate"],
            "hubTokenHosts": ["huggingface.co", "hub.example:8443"],
            "webCredentialHosts": ["files.example"],
            "notificationHosts": ["hooks.example", "hooks.example:8443"],
            "trackingHosts": ["mlflow.example", "mlflow.svc:5000"],
            "pictureHosts": ["pictures.example", "pictures.example:8443"],
            "publishDestinations": [
                "s3://llava-models", "hf://team", "oci://registry.example/team", "oci://registry.example:5000",
                "pvc://shared/models",
            ],
            "tolerations": False,
            "serviceAccountNames": ["llava-*"],
        },
    },
    "closed": {
        **_OWN_IMAGE,
        "policy": {
            "imageRepositories": [], "secretNames": [], "caConfigMaps": [], "hubTokenHosts": [],
            "webCredentialHosts": [], "notificationHosts": [], "tolerations": False, "serviceAccountNames": [],
            "trackingHosts": [], "publishDestinations": [],
        },
    },
    "mirror": {
        **_OWN_IMAGE,
        "download": {"hubEndpoint": "http://hub.svc:8080"},
        "policy": {"hubTokenHosts": ["other.example"], "webCredentialHosts": []},
    },
    "plain": {
        **_OWN_IMAGE,
        "policy": {"notificationHosts": ["hooks.svc", "hooks.svc:8080"], "insecureNotifications": True},
    },
    "open-curves": {
        **_OWN_IMAGE,
        "policy": {
            "trackingHosts": ["*", "mlflow.example", "mlflow.svc:8443"],
            "webCredentialHosts": ["files.example", "files.example:8443"],
        },
    },
    # As much to compare as there may be, all of it in vain.
    "large-open-curves": {
        **_OWN_IMAGE,
        "policy": {
            "trackingHosts": ["*", *(f"{'a' * 190}.{n:03}" for n in range(15))],
            "webCredentialHosts": [f"{'a' * 190}.{n:03}" for n in range(16)],
        },
    },
    "large": {
        **_OWN_IMAGE,
        "policy": {
            "imageRepositories": [f"registry.example/{'a' * 180}{n:03}" for n in range(16)],
            "secretNames": [f"{'a*' * 98}{n:03}" for n in range(16)],
            "caConfigMaps": [f"{'a*' * 98}{n:03}" for n in range(16)],
            "hubTokenHosts": [f"{'a' * 190}.{n:03}" for n in range(16)],
            "webCredentialHosts": [f"{'a' * 190}.{n:03}" for n in range(16)],
            "notificationHosts": [f"{'a' * 190}.{n:03}" for n in range(16)],
            "trackingHosts": [f"{'a' * 190}.{n:03}" for n in range(16)],
            "publishDestinations": [f"s3://bucket/{'a' * 180}{n:03}" for n in range(16)],
            "tolerations": False,
            "serviceAccountNames": [f"{'a*' * 98}{n:03}" for n in range(16)],
        },
    },
}  # fmt: skip
CAPTIONS = {"source": "pvc://data/captions", "format": "llava", "file": "captions.json"}
MODEL_PARTS = ("source", "base", "languageModel", "visionTower", "projector", "adapter")
_GENERAL = {"source": "pvc://data/general", "format": "llava", "file": "general.json"}
_DIGEST = f"sha256:{'a' * 64}"


WRONG_REPOSITORIES = (
    "team", "library/llava", "registry.example/team:1", "registry.example/Team", "registry.example/team/",
    "https://registry.example/team", "registry.example//team", "registry.example/*", "*.example", "REGISTRY.example",
    f"registry.example/team@{_DIGEST}", "registry.example/" + "a" * 184,
)  # fmt: skip
WRONG_NAMES = ("A", "a b", "a/b", "a[b]", "ü", "a" * 201)
WRONG_HOSTS = ("https://h.example", "h.example/x", "H.example", "*.example", "h.example:x", "me@h.example", "[::1]")
WRONG_DESTINATIONS = (
    "models",
    "s3://",
    "s3:///x",
    "https://h.example",
    "s3://bucket/",
    "s3://bucket//x",
    "s3://bucket/../x",
    "s3://*",
    "oci://r.example/x:1",
    "hf://team/x@main",
    "S3://bucket",
    "pvc://a b",
    "s3://bucket/" + "a" * 189,
)
"""Entries that neither operator nor chart take."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run and what an installation says about it."""

    installation: str
    name: str
    refusal: str | None
    spec: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.installation}-{self.name}"


def policy_of(values: Mapping[str, Any]) -> Policy:
    """The policy of an installation with these chart values; defaults are the operator's own."""
    given = values.get("policy", {})
    names = {key: key.removeprefix("policy_") for key in Settings.model_fields if key.startswith("policy_")}
    camel = {"".join(part.capitalize() if n else part for n, part in enumerate(name.split("_"))): key
             for key, name in names.items()}  # fmt: skip
    image = values["trainerImage"]
    return Settings(
        namespace="system", pod_name="op", pod_ip="192.0.2.1", trainer_image=f"{image['repository']}:{image['tag']}",
        hub_endpoint=values.get("download", {}).get("hubEndpoint", ""),
        **{camel[key]: value for key, value in given.items()},
    ).policy  # fmt: skip


def make_spec(changes: Mapping[str, Any]) -> dict[str, Any]:
    """A small valid spec with changes to its parts: fields of objects, everything else whole."""
    spec: dict[str, Any] = {
        "model": {"source": "pvc://models/llava"},
        "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
        "training": {"batch": {"perDevice": 1, "global": 1}},
        "workers": {"replicas": 1, "gpus": 0},
        "evaluation": {"workers": {"gpus": 0}},
    }
    for part, value in changes.items():
        spec[part] = spec.get(part, {}) | value if isinstance(value, dict) else value
    return spec


def make_run(case: Case, name: str) -> dict[str, Any]:
    """The run of a case."""
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": make_spec(case.spec)}


def _image(reference: str) -> dict[str, Any]:
    return {"image": {"reference": reference}}


def _secret(name: str) -> dict[str, Any]:
    return {"secretRef": {"name": name}}


def _hub(endpoint: str | None, **download: Any) -> dict[str, Any]:
    """A run that has a token for a hub."""
    return {
        "model": {"source": "hf://llava-hf/llava-1.5-7b-hf", **_secret("llava-hub")},
        "download": {"hubEndpoint": endpoint, **download},
    }


def _account(name: str) -> dict[str, Any]:
    return {"scheduling": {"serviceAccountName": name}}


def _web(source: str) -> dict[str, Any]:
    return {"dataset": {"source": source, **_secret("llava-web")}}


def _mixed(*datasets: dict[str, Any]) -> dict[str, Any]:
    """A run that mixes these in."""
    return {"mixture": [{"dataset": _GENERAL | dataset, "share": 0.1} for dataset in datasets]}


def _retained(source: str, secret: str | None = None) -> dict[str, Any]:
    dataset = {"source": source, "format": "llava", "file": "g.json", **(_secret(secret) if secret else {})}
    return {"evaluation": {"retention": {"dataset": dataset}}}


def _told(*urls: str | None, webhook: str | None = None, slack: str | None = None) -> dict[str, Any]:
    """A run with a notification for each address, and for each Secret."""
    receivers: list[dict[str, Any]] = [{"webhook": {"url": url}} for url in urls]
    receivers += [{"webhook": _secret(webhook)}] if webhook else []
    receivers += [{"slack": _secret(slack)}] if slack else []
    return {"notifications": [{"name": f"n{n}", **receiver} for n, receiver in enumerate(receivers)]}


def _tracked(url: str, secret: str | None = None) -> dict[str, Any]:
    mlflow = {"url": url, "experiment": "e", **(_secret(secret) if secret else {})}
    return {"training": {"tracking": {"mlflow": mlflow}}}


def _watched(url: str, secret: str | None = None, *, mlflow: str | None = None) -> dict[str, Any]:
    """A run of Weights & Biases, and one of MLflow beside it where there is an address."""
    wandb = {"url": url, "project": "p", **(_secret(secret) if secret else {})}
    beside = _tracked(mlflow)["training"]["tracking"] if mlflow else {}
    return {"training": {"tracking": {"wandb": wandb, **beside}}}


def _published(
    *addresses: str, secret: str | None = None, signing: str | None = None, **download: Any
) -> dict[str, Any]:
    """A run that publishes to each of these, with a Secret for the last."""
    destinations: list[dict[str, Any]] = [{"address": address} for address in addresses]
    destinations[-1] |= _secret(secret) if secret else {}
    signed = {"signing": {"name": signing}} if signing else {}
    return {"publish": {"destinations": destinations, **signed}, "download": download}


def _cases(installation: str, kind: str, cases: Mapping[str, tuple[dict[str, Any], str | None]]) -> list[Case]:
    return [Case(installation=installation, name=f"{kind}-{name}", spec=spec, refusal=refusal)
            for name, (spec, refusal) in cases.items()]  # fmt: skip


_ALLOWED_IMAGES = (
    TRAINER, "registry.example/team", "registry.example/team:V1_x.y", f"registry.example/team@{_DIGEST}",
    f"registry.example/team/x-y/z__1:1@{_DIGEST}", "registry.example:5000/team/x", "llava", "llava:1", "library/llava",
    f"docker.io/llava@{_DIGEST}", "docker.io/library/llava", "mine/x:2", "localhost/x", "ghcr.io/anyone/x",
)  # fmt: skip
_REFUSED_IMAGES = (
    "registry.example/ours/trainer:2", "registry.example/ours/trainer", "registry.example/team-evil",
    "registry.example/team-evil/x", "registry.example/teams/x", "registry.example/team.evil/x",
    "registry.example/other", "registry.example", "registry.example.evil.example/team",
    "evil.example/registry.example/team",
    "xregistry.example/team", "registryxexample/team", "registry.example:5001/team", "registry.example:5000/other",
    "registry.example:443/team", "registry.example/team:5000/evil", "REGISTRY.example/team", "registry.example/Team",
    "registry.example/team/../evil", "registry.example//team", "/registry.example/team", " registry.example/team",
    "registry.example/team ", "registry.example/team\n", "registry.example/team\nevil", "registry.example/team@evil",
    "registry.example@evil/team", "user@registry.example/team", "https://registry.example/team",
    "registry.example/team#x", "registry.example/team?x", "registry.example/team%2fx", "registry.example/team/",
    "registry.example/team:", "registry.example/team:a:b", f"registry.example/team@{_DIGEST}@{_DIGEST}",
    "registry.example/team:ünicode", "regıstry.example/team", "llava/x", "library/llava2", "docker.io/mine", "mine",
    "index.docker.io/evil/x", "localhost.evil/x", "LOCALHOST/x", "ghcr.io", "ghcr.io.evil/x", "ghcr.io:443/x",
    "[::1]:5000/x", "*", "..", "a" * 512,
)  # fmt: skip
_ALLOWED_HUBS = (
    None, "", "https://huggingface.co", "https://HuggingFace.co/", "https://huggingface.co:443",
    "https://hub.example:8443/hf/mirror",
)  # fmt: skip
_REFUSED_HUBS = (
    "http://huggingface.co", "HTTPS://huggingface.co", "huggingface.co", "//huggingface.co", "https://hub.example",
    "https://hub.example:443", "https://huggingface.co:8443", "https://huggingface.co.evil.example",
    "https://evil-huggingface.co", "https://huggingface.co.", "https://huggingfacexco",
    "https://huggingface.co@evil.example", "https://huggingface.co:443@evil.example/", "https://a:b@huggingface.co",
    "https://evil.example/huggingface.co", "https://evil.example#https://huggingface.co",
    "https://huggingface.co\\@evil.example", "https://huggingface.co#", "https://huggingface.co?x",
    "https://huggingface.co\n", " https://huggingface.co", "https://huggingface.co\t", "https://hug\u200bgingface.co",
    "https://huggingface\uff0eco", "https://hub.example:8443:1", "https://", "x",
)  # fmt: skip
_ALLOWED_DESTINATIONS = (
    "s3://llava-models/a",
    "s3://llava-models/a/b_c/d.e-f",
    "hf://team/invoices",
    "hf://team/invoices@v1.2",
    "oci://registry.example/team:1",
    "oci://registry.example/team/invoices:latest",
    "oci://registry.example:5000/anyone/invoices:V1",
    "pvc://shared/models",
    "pvc://shared/models/invoices",
)
_REFUSED_DESTINATIONS = (
    "s3://llava-models-evil/a",
    "s3://llava/a",
    "s3://x-llava-models/llava-models",
    "hf://team-evil/x",
    "hf://tea/team",
    "hf://evil/team@team",
    "oci://registry.example/teams/x:1",
    "oci://registry.example/other:1",
    "oci://registry.example:5001/team/x:1",
    "oci://registry.example:443/team:1",
    "oci://registry.example.evil/team:1",
    "oci://evil.example/registry.example/team:1",
    "pvc://shared/modelsx",
    "pvc://shared/other",
    "pvc://other/models",
)
_PUBLISH_RULE = (
    "but this installation publishes only to s3://llava-models, hf://team, oci://registry.example/team, "
    "oci://registry.example:5000, pvc://shared/models (policy.publishDestinations): use an allowed one, or leave "
    "spec.publish out"
)
_IMAGE_RULE = "but this installation allows its own trainer image"


def _shown(value: str, hidden: str = " ") -> str:
    fit = value.isascii() and value.isprintable() and not set(hidden) & set(value)
    return value if fit else "a value that is not shown"


CASES: tuple[Case, ...] = (
    *_cases("usual", "free", {
        "image": (_image("evil.example/x"), None),
        "tolerations": ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, None),
        "secrets": ({"model": _secret("any"), "dataset": _secret("other"), "imagePullSecrets": [{"name": "x"}]}, None),
        "ca": ({"download": {"caConfigMap": "any"}}, None),
        "web": (_web("https://anywhere.example/set.zip"), None),
        "hub": (_hub("https://huggingface.co"), None),
        "mirror": (_hub("https://mirror.example"), "spec.download.hubEndpoint is https://mirror.example, but"),
        "no-account": ({"scheduling": {"serviceAccountName": None}}, None),
        "account": (_account("default"), "spec.scheduling.serviceAccountName is default, but this installation allows "
                    "no ServiceAccounts (policy.serviceAccountNames): name an allowed one, or none"),
        "told": (_told("https://any.example:1/x?y", webhook="any", slack="other"), None),
        "told-in-clear": (_told("https://any.example", "http://any.example:80/x"), "spec.notifications.webhook.url is "
                          "at http://any.example:80, but this installation sends notifications by https only "
                          "(policy.insecureNotifications): use an allowed address, or leave the notification out"),
        "published": (_published("s3://any/x", "oci://any.example/x:1", "pvc://any/x", "hf://any/x", secret="any",
                                 signing="any"), None),
        "published-on-a-mirror": (_published("hf://any/x", hubEndpoint="https://mirror.example"),
                                  "spec.download.hubEndpoint is https://mirror.example, but"),
        "published-elsewhere": (_published("s3://any/x", hubEndpoint="https://mirror.example"), None),
        "mirror-without-token": ({"model": {"source": "hf://a/b"}, "download": {"hubEndpoint": "http://m"}}, None),
    }),
    *_cases("strict", "image", {f"ok-{n}": (_image(one), None) for n, one in enumerate(_ALLOWED_IMAGES)}),
    *_cases("strict", "image", {
        f"no-{n}": (_image(one), f"spec.image.reference is {_shown(one)}, {_IMAGE_RULE} and images of regi")
        for n, one in enumerate(_REFUSED_IMAGES)
    }),
    *_cases("strict", "secret", {
        "ok": ({"model": _secret("llava-"), "dataset": _secret("llava-s3.eu"), "download": _secret("llava-p"),
                "alignment": {"dataset": CAPTIONS | _secret("llava-x"), "freshProjector": True,
                              "batch": {"perDevice": 1, "global": 1}},
                "imagePullSecrets": [{"name": "registry.pull"}]}, None),
        "model": ({"model": _secret("hub")}, "spec.model.secretRef.name is hub, but this installation allows only "
                                             "Secrets named llava-*, registry.pull (policy.secretNames): "),
        "dataset": ({"dataset": _secret("llava")}, "spec.dataset.secretRef.name is llava, but"),
        "alignment": ({"alignment": {"dataset": CAPTIONS | _secret("x-llava-"), "freshProjector": True,
                                     "batch": {"perDevice": 1, "global": 1}}},
                      "spec.alignment.dataset.secretRef.name is x-llava-, but"),
        "retention-ok": (_retained("pvc://general/", "llava-a"), None),
        "retention-null": ({"evaluation": {"retention": None}}, None),
        "retention": (_retained("https://a.example/set.zip", "x-llava"),
                      "spec.evaluation.retention.dataset.secretRef.name is x-llava, but"),
        "mixture-ok": (_mixed(_secret("llava-a"), {}, _secret("llava-b")), None),
        "mixture": (_mixed({}, _secret("llava-a"), _secret("x-llava")),
                    "spec.mixture.dataset.secretRef.name is x-llava, but"),
        "download": ({"download": _secret("registryxpull")}, "spec.download.secretRef.name is registryxpull, but"),
        "pull": ({"imagePullSecrets": [{"name": "llava-a"}, {"name": "other"}]}, "spec.imagePullSecrets is other, but"),
        "upper": ({"dataset": _secret("LLAVA-a")}, "spec.dataset.secretRef.name is LLAVA-a, but"),
        "newline": ({"dataset": _secret("llava-a\n")}, "spec.dataset.secretRef.name is a value that is not shown, but"),
        "below": ({"dataset": _secret("llava-a/b")}, "spec.dataset.secretRef.name is llava-a/b, but"),
        "first-of-two": ({"model": _secret("one"), "dataset": _secret("two")}, "spec.model.secretRef.name is one, but"),
    }),
    *_cases("strict", "ca", {
        "ok": ({"download": {"caConfigMap": "corporate"}}, None),
        "no": ({"download": {"caConfigMap": "corporate-x"}}, "spec.download.caConfigMap is corporate-x, but this "
               "installation allows only ConfigMaps with authorities named corporate (policy.caConfigMaps): "),
    }),
    *_cases("strict", "hub", {f"ok-{n}": (_hub(one), None) for n, one in enumerate(_ALLOWED_HUBS)}),
    *_cases("strict", "hub", {
        f"no-{n}": (_hub(one), f"spec.download.hubEndpoint is {_shown(one, '@ ')}, but this installation sends hub "
                    "tokens to its own hub, https://huggingface.co, https://hub.example:8443 only (policy.hubToken")
        for n, one in enumerate(_REFUSED_HUBS)
    }),
    *_cases("strict", "token", {
        "none": ({"model": {"source": "hf://a/b"}, "download": {"hubEndpoint": "https://evil.example"}}, None),
        "for-a-claim": ({"model": _secret("llava-a"), "download": {"hubEndpoint": "https://evil.example"}}, None),
        "dataset": ({"dataset": {"source": "hf://a/b", **_secret("llava-a")}, "download": {"hubEndpoint": "https://e"}},
                    "spec.download.hubEndpoint is https://e, but"),
        "tower": ({"model": {"visionTower": "hf://a/b", **_secret("llava-a")}, "download": {"hubEndpoint": "https://e"}},
                  "spec.download.hubEndpoint is https://e, but"),
        "alignment": ({"alignment": {"dataset": CAPTIONS | {"source": "hf://a/b"} | _secret("llava-a"),
                                     "freshProjector": True, "batch": {"perDevice": 1, "global": 1}},
                       "download": {"hubEndpoint": "https://e"}}, "spec.download.hubEndpoint is https://e, but"),
        "retention": (_retained("hf://a/b", "llava-a") | {"download": {"hubEndpoint": "https://e"}},
                      "spec.download.hubEndpoint is "),
        "mixture": (_mixed({"source": "hf://a/b", **_secret("llava-a")}) | {"download": {"hubEndpoint": "https://e"}},
                    "spec.download.hubEndpoint is https://e, but"),
        "mixture-none": (_mixed({"source": "hf://a/b"}) | {"download": {"hubEndpoint": "https://e"}}, None),
    }),
    *_cases("strict", "web", {
        "ok": (_web("https://files.example/set.zip"), None),
        "ok-case": (_web("https://FILES.example:443/a/set.tar.gz?x=y#sha256=" + "a" * 64), None),
        "none": ({"dataset": {"source": "https://evil.example/set.zip"}}, None),
        "host": (_web("https://evil.example/set.zip?key=hidden"), "spec.dataset.source is at https://evil.example, but "
                 "this installation sends credentials of https:// sources only to https://files.example "),
        "port": (_web("https://files.example:8443/s.zip"), "spec.dataset.source is at https://files.example:8443, but"),
        "below": (_web("https://files.example.e/s.zip"), "spec.dataset.source is at https://files.example.e, but"),
        "path": (_web("https://e.example/files.example/set.zip"), "spec.dataset.source is at https://e.example, but"),
        "retention": (_retained("https://e.example/set.zip", "llava-a"),
                      "spec.evaluation.retention.dataset.source is at https://e.example, but"),
        "mixture": (_mixed({}, {"source": "https://e.example/set.zip", **_secret("llava-a")}),
                    "spec.mixture.dataset.source is at https://e.example, but"),
        "projector": ({"model": {"projector": "https://e.example/p.bin", **_secret("llava-a")}},
                      "spec.model.projector is at https://e.example, but"),
    }),
    *_cases("strict", "tolerations", {
        "none": ({"scheduling": {"tolerations": []}}, None),
        "one": ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, "spec.scheduling.tolerations is not empty, "
                "but this installation allows none (policy.tolerations): leave spec.scheduling.tolerations out"),
    }),
    *_cases("strict", "account", {
        "ok": (_account("llava-s3.eu"), None),
        "no": (_account("x-llava-s3"), "spec.scheduling.serviceAccountName is x-llava-s3, but this installation allows "
               "only ServiceAccounts named llava-* (policy.serviceAccountNames): "),
    }),
    *_cases("strict", "told", {
        "ok": (_told("https://hooks.example", "https://HOOKS.example:443/a@b?c", "https://hooks.example:8443/",
                     webhook="llava-w", slack="llava-s"), None),
        "webhook": (_told(webhook="other", slack="another"), "spec.notifications.webhook.secretRef.name is other, but "
                    "this installation allows only Secrets named llava-*, registry.pull (policy.secretNames): "),
        "slack": (_told(webhook="llava-w", slack="other"), "spec.notifications.slack.secretRef.name is other, but"),
        "host": (_told("https://hooks.example/", "https://evil.example/hooks.example?token"),
                 "spec.notifications.webhook.url is at https://evil.example, but this installation sends notifications "
                 "only to hooks.example, hooks.example:8443 (policy.notificationHosts): use an allowed address, or "),
        "port": (_told("https://hooks.example:444"), "spec.notifications.webhook.url is at https://hooks.example:444,"),
        "below": (_told("https://hooks.example.e"), "spec.notifications.webhook.url is at https://hooks.example.e,"),
        "in-clear": (_told("http://hooks.example"), "spec.notifications.webhook.url is at http://hooks.example, but "
                     "this installation sends notifications by https only"),
        "null": ({"notifications": [{"name": "a", "slack": None, "webhook": {"url": "https://hooks.example",
                                                                             "secretRef": None}}]}, None),
    }),
    *_cases("strict", "published", {
        "ok": (_published("pvc://shared/models", "oci://registry.example/team:1", "s3://llava-models/a",
                          secret="llava-p", signing="llava-k"), None),
        **{f"ok-{n}": (_published(one), None) for n, one in enumerate(_ALLOWED_DESTINATIONS)},
        **{f"no-{n}": (_published(one), f"spec.publish.destinations.address is {one}, {_PUBLISH_RULE}")
           for n, one in enumerate(_REFUSED_DESTINATIONS)},
        "last": (_published("s3://llava-models/a", "hf://team/x", "s3://other/a"),
                 "spec.publish.destinations.address is s3://other/a, but"),
        "secret": (_published("s3://llava-models/a", "hf://team/x", secret="other"), "spec.publish.destinations."
                   "secretRef.name is other, but this installation allows only Secrets named llava-*, registry.pull "),
        "signing": (_published("s3://llava-models/a", signing="other"), "spec.publish.signing.name is other, but this "
                    "installation allows only Secrets named llava-*, registry.pull (policy.secretNames): "),
        "hub": (_published("hf://team/x", hubEndpoint="https://hub.example:8443"), None),
        "other-hub": (_published("s3://llava-models/a", "hf://team/x", hubEndpoint="https://evil.example"),
                      "spec.download.hubEndpoint is https://evil.example, but this installation sends hub tokens to "
                      "its own hub, https://huggingface.co, https://hub.example:8443 only (policy.hubTokenHosts): name "
                      "an allowed one, or leave out spec.download.hubEndpoint or the secretRef of hf:// sources and "
                      "hf:// destinations"),
        "null": ({"publish": None}, None),
        "null-secrets": ({"publish": {"destinations": [{"address": "s3://llava-models/a", "secretRef": None}],
                                      "signing": None}}, None),
    }),
    *_cases("strict", "tracked", {
        "ok": (_tracked("https://MLFLOW.example:443/base", "llava-t"), None),
        "in-clear": (_tracked("http://mlflow.svc:5000"), None),
        "null": ({"training": {"tracking": {"mlflow": None, "tensorboard": {}}}}, None),
        "none": ({"training": {"tracking": None}}, None),
        "secret": (_tracked("https://mlflow.example", "other"), "spec.training.tracking.mlflow.secretRef.name is "
                   "other, but this installation allows only Secrets named llava-*, registry.pull "),
        "host": (_tracked("https://evil.example/mlflow.example"), "spec.training.tracking.mlflow.url is at "
                 "https://evil.example, but this installation tells the curves of runs only to mlflow.example, "
                 "mlflow.svc:5000 (policy.trackingHosts): use an allowed address, or leave "),
        "port": (_tracked("http://mlflow.svc"), "spec.training.tracking.mlflow.url is at http://mlflow.svc, but"),
        "below": (_tracked("https://mlflow.example.e"), "spec.training.tracking.mlflow.url is at https://mlflow.example.e,"),
    }),
    *_cases("strict", "watched", {
        "ok": (_watched("https://MLFLOW.example:443", "llava-t", mlflow="http://mlflow.svc:5000"), None),
        "on-the-volume": (_watched("https://api.wandb.ai"), None),
        "null": ({"training": {"tracking": {"mlflow": None, "wandb": {"project": "p", "secretRef": None}}}}, None),
        "none": ({"training": {"tracking": {"wandb": None}}}, None),
        "secret": (_watched("https://mlflow.example", "other"), "spec.training.tracking.wandb.secretRef.name is "
                   "other, but this installation allows only Secrets named llava-*, registry.pull "),
        "host": (_watched("https://evil.example/mlflow.example", "llava-t"), "spec.training.tracking.wandb.url is at "
                 "https://evil.example, but this installation tells the curves of runs only to mlflow.example, "
                 "mlflow.svc:5000 (policy.trackingHosts): use an allowed address, or leave "
                 "spec.training.tracking.wandb out"),
        "other-host": (_watched("https://mlflow.example", "llava-t", mlflow="https://evil.example"),
                       "spec.training.tracking.mlflow.url is at https://evil.example, but"),
    }),
    *_cases("open-curves", "watched", {
        "on-the-volume": (_watched("https://evil.example"), None),
        "named": (_watched("https://MLFLOW.example:443", "any"), None),
        "host": (_watched("https://evil.example", "any"), "spec.training.tracking.wandb.url is at "
                 "https://evil.example, but this installation sends credentials of trackers only to "),
    }),
    *_cases("usual", "tracked", {
        "any": (_tracked("https://any.example", "any"), None),
        "in-clear": (_tracked("http://any.svc"), None),
    }),
    *_cases("open-curves", "tracked", {
        "any": (_tracked("https://any.example"), None),
        "in-clear": (_tracked("http://any.svc"), None),
        "null": ({"training": {"tracking": {"mlflow": {"url": "https://any.example", "experiment": "e",
                                                       "secretRef": None}}}}, None),
        "named": (_tracked("https://MLFLOW.example:443/base", "any"), None),
        "port": (_tracked("https://mlflow.svc:8443", "any"), None),
        "web": (_tracked("https://files.example:8443/mlflow", "any"), None),
        "host": (_tracked("https://evil.example/mlflow.example", "any"), "spec.training.tracking.mlflow.url is at "
                 "https://evil.example, but this installation sends credentials of trackers only to "
                 "https://files.example, https://files.example:8443, hosts that policy.trackingHosts names "
                 "(policy.webCredentialHosts): use an allowed one, or leave out the secretRef beside it"),
        "no-port": (_tracked("https://mlflow.svc", "any"), "spec.training.tracking.mlflow.url is at "
                    "https://mlflow.svc, but"),
        "below": (_tracked("https://mlflow.example.e", "any"), "spec.training.tracking.mlflow.url is at "
                  "https://mlflow.example.e, but"),
    }),
    *_cases("large-open-curves", "tracked", {
        "host": (_tracked(f"https://{'a' * 900}.example/x", "any"), "spec.training.tracking.mlflow.url is at https://aaa"),
    }),
    *_cases("mirror", "tracked", {
        "any": (_tracked("https://any.example"), None),
        "secret": (_tracked("https://any.example", "any"), "spec.training.tracking.mlflow.url is at "
                   "https://any.example, but this installation sends credentials of trackers only to hosts that "
                   "policy.trackingHosts names (policy.webCredentialHosts): "),
    }),
    *_cases("plain", "told", {
        "ok": (_told("http://hooks.svc/x", "http://hooks.svc:80", "http://hooks.svc:8080/", "https://hooks.svc:443"),
               None),
        "port": (_told("http://hooks.svc:443"), "spec.notifications.webhook.url is at http://hooks.svc:443, but"),
        "host": (_told("http://hooks.svc.e"), "spec.notifications.webhook.url is at http://hooks.svc.e, but"),
    }),
    *_cases("strict", "nothing", {
        "null": ({"model": {"secretRef": None, "base": None}, "dataset": {"secretRef": None}, "alignment": None,
                  "image": {"reference": None},
                  "download": {"hubEndpoint": None, "caConfigMap": None, "secretRef": None, "httpProxy": None}}, None),
        "said": ({}, None),
    }),
    *_cases("closed", "all", {
        "nothing": ({}, None),
        "own-image": (_image(TRAINER), None),
        "image": (_image("llava"), f"spec.image.reference is llava, {_IMAGE_RULE} only (policy.imageRepositories): "),
        "secret": ({"model": _secret("x")}, "spec.model.secretRef.name is x, but this installation allows no Secret"),
        "pull": ({"imagePullSecrets": [{"name": "x"}]}, "spec.imagePullSecrets is x, but this installation allows no "),
        "ca": ({"download": {"caConfigMap": "x"}}, "spec.download.caConfigMap is x, but this installation allows no "),
        "told": (_told("https://x/y"), "spec.notifications.webhook.url is at https://x, but this installation sends "
                 "notifications to no host (policy.notificationHosts): "),
        "tracked": (_tracked("https://x"), "spec.training.tracking.mlflow.url is at https://x, but this installation "
                    "tells the curves of runs to nobody (policy.trackingHosts): "),
        "published": (_published("s3://any/x"), "spec.publish.destinations.address is s3://any/x, but this "
                      "installation publishes nowhere (policy.publishDestinations): "),
        "told-slack": (_told(slack="x"), "spec.notifications.slack.secretRef.name is x, but this installation allows "),
        "hub-without-token": ({"model": {"source": "hf://a/b"}, "download": {"hubEndpoint": "http://x"}}, None),
    }),
    *_cases("mirror", "hub", {
        "own": (_hub(None), None),
        "named": (_hub("http://hub.svc:8080"), None),
        "other": (_hub("https://other.example/x"), None),
        "slash": (_hub("http://hub.svc:8080/"), "spec.download.hubEndpoint is http://hub.svc:8080/, but"),
        "empty": (_hub(""), "spec.download.hubEndpoint is https://huggingface.co, but"),
        "public": (_hub("https://huggingface.co"), "spec.download.hubEndpoint is https://huggingface.co, but"),
        "proxy": (_hub(None, httpProxy="http://e:1"), "spec.download.httpProxy is http://e:1, but this installation "
                  "reaches its hub without TLS, and the proxy would read the token (policy.hubTokenHosts): "),
        "secret-proxy": (_hub(None, httpProxy="http://me:hunter2@e:1"), "spec.download.httpProxy is a value that is "
                         "not shown, but"),
        "named-proxy": (_hub("http://hub.svc:8080", httpProxy="http://e"), "spec.download.httpProxy is http://e, but"),
        "no-proxy": (_hub(None, httpProxy=""), None),
        "published": (_published("hf://any/x"), None),
        "published-by-proxy": (_published("hf://any/x", httpProxy="http://e:1"), "spec.download.httpProxy is "
                               "http://e:1, but this installation reaches its hub without TLS, and the proxy would "),
        "tls-proxy": (_hub("https://other.example", httpProxy="http://e"), None),
        "proxy-for-tls": (_hub(None, httpsProxy="http://e"), None),
        "proxy-without-token": ({"model": {"source": "hf://a/b"}, "download": {"httpProxy": "http://e"}}, None),
        "web": (_web("https://x/set.zip"), "spec.dataset.source is at https://x, but this installation sends "
                "credentials of https:// sources to no host (policy.webCredentialHosts): "),
    }),
    *_cases("large", "all", {
        "image": (_image("registry.example/" + "a" * 495), "spec.image.reference is registry.example/aaa"),
        "secrets": ({"model": _secret("a" * 253), "dataset": _secret("a" * 253), "download": _secret("a" * 253),
                     "alignment": {"dataset": CAPTIONS | _secret("a" * 253), "freshProjector": True,
                                   "batch": {"perDevice": 1, "global": 1}}},
                    "spec.model.secretRef.name is aaa"),
        "mixture": (_mixed(*[_secret("a" * 253)] * 8), "spec.mixture.dataset.secretRef.name is aaa"),
        "pulls": ({"imagePullSecrets": [{"name": "a" * 253}] * 8}, "spec.imagePullSecrets is aaa"),
        "ca": ({"download": {"caConfigMap": "a" * 253}}, "spec.download.caConfigMap is aaa"),
        "published": (_published(*[f"s3://bucket/{'a' * 240}{n}" for n in range(4)]),
                      "spec.publish.destinations.address is s3://bucket/aaa"),
        "published-secrets": (_published(*[f"s3://bucket/{n}" for n in range(4)], secret="a" * 253,
                                         signing="a" * 253), "spec.publish.destinations.secretRef.name is aaa"),
        "account": (_account("a" * 253), "spec.scheduling.serviceAccountName is aaa"),
        "told": (_told(*[f"https://{'a' * 900}.example/x"] * 6, webhook="a" * 253, slack="a" * 253),
                 "spec.notifications.webhook.secretRef.name is aaa"),
        "told-host": (_told(*[f"https://{'a' * 900}.example/x"] * 8), "spec.notifications.webhook.url is at https://aaa"),
    }),
)  # fmt: skip
