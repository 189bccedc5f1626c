"""What receivers are told, its schema, and addresses that others wrote."""

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llava_api.addresses import is_allowed_address, is_at, is_spared, show_host
from llava_api.constants import LABEL_NOTIFICATION, NotificationEvent
from llava_api.delivery import Delivery
from llava_api.names import MAX_DNS_LABEL, MAX_RUN_NAME, notification_job_name
from llava_api.run_event import TYPE_PREFIX, event_type
from llava_api.spec import Notification

ROOT = Path(__file__).parents[2]


def test_types_of_events_are_frozen() -> None:
    """Receivers filter by them: others may come, and none goes."""
    names = (
        "succeeded", "failed", "waitingtoolong", "restarted", "suspended", "gatefailed", "gateundecided", "published",
        "notpublished",
    )  # fmt: skip
    assert [event_type(event) for event in NotificationEvent] == [f"{TYPE_PREFIX}.{name}.v1" for name in names]


def test_the_schema_is_open_and_knows_every_event() -> None:
    text = (ROOT / "docs" / "run-event.v1.json").read_text()
    assert "additionalProperties" not in text
    schema = json.loads(text)
    assert schema["required"] == ["id", "source", "type", "subject", "time", "data"]
    assert schema["$defs"]["NotificationEvent"]["enum"] == [str(event) for event in NotificationEvent]


def test_the_page_shows_what_the_schema_has() -> None:
    page = (ROOT / "docs" / "notifications.md").read_text()
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    schema = json.loads((ROOT / "docs" / "run-event.v1.json").read_text())
    assert shown.keys() == schema["properties"].keys()
    assert shown["data"].keys() <= schema["$defs"]["EventData"]["properties"].keys()
    for event in NotificationEvent:
        assert f"| `{event}` |" in page


def test_the_example_of_a_network_policy_is_about_their_pods_and_lets_them_reach_little() -> None:
    policy = yaml.safe_load((ROOT / "manifests" / "network" / "notifications.yaml").read_text())
    spec = policy["spec"]
    assert spec["podSelector"] == {"matchExpressions": [{"key": LABEL_NOTIFICATION, "operator": "Exists"}]}
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress", "Egress"], [])
    dns, outside = spec["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert outside["ports"] == [{"port": 443, "protocol": "TCP"}]
    [to] = outside["to"]
    closed = [ipaddress.ip_network(one) for one in to["ipBlock"]["except"]]
    for address in ("169.254.169.254", "10.96.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1"):
        assert any(ipaddress.ip_address(address) in network for network in closed), address


def test_names_of_jobs_are_dns_labels_and_differ_by_receiver_and_event() -> None:
    run = "a" * MAX_RUN_NAME
    names = {notification_job_name(run, event, receiver) for event in ("e", "f") for receiver in ("r", "s")}
    assert len(names) == 4
    assert max(map(len, names)) <= MAX_DNS_LABEL


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"events": []}, "at least 1"),
        ({"events": ["Promoted"]}, "Input should be 'Succeeded'"),
        ({"waitingSeconds": 59}, "greater than or equal to 60"),
        ({"name": "A"}, "String should match"),
        ({"name": "a" * 21}, "at most 20"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Notification.model_validate({"name": "a", "webhook": {"url": "https://h"}, **changes})


def test_a_delivery_survives_the_wire() -> None:
    delivery = Delivery(kind="slack", id="i", body='{"text": "ü"}', content_type="application/json")
    assert Delivery.model_validate_json(delivery.model_dump_json(exclude_none=True)) == delivery


@pytest.mark.parametrize(
    ("address", "hosts", "insecure", "allowed"),
    [
        ("https://h", ("*",), False, True),
        ("http://h", ("*",), False, False),
        ("http://h", ("*",), True, True),
        ("https://H:443/x?y", ("h",), False, True),
        ("https://h", ("h:443",), False, True),
        ("http://h/x", ("h",), True, True),
        ("http://h:80", ("h",), True, True),
        ("http://h", ("h:80",), True, True),
        ("http://h:8080", ("h",), True, False),
        ("https://h:80", ("h:80",), True, True),
        ("https://h", ("h:80",), True, False),
        ("https://me:secret@h", ("*",), True, False),
        ("https://h@evil", ("*",), True, False),
        ("https://h\n", ("*",), True, False),
        ("https://h/\n", ("*",), True, False),
        ("https://h/ü", ("*",), True, False),
        ("https://h.evil", ("h",), True, False),
        ("https://[::1]", ("*",), True, False),
        ("ftp://h", ("*",), True, False),
        ("https://h", (), True, False),
        ("", ("*",), True, False),
    ],
)
def test_where_notifications_may_go(address: str, hosts: tuple[str, ...], insecure: bool, allowed: bool) -> None:
    assert is_allowed_address(address, hosts, insecure=insecure) is allowed


def test_of_an_address_the_host_alone_is_shown() -> None:
    assert show_host("https://Hooks.example:8443/T000?token=x") == "https://Hooks.example:8443"
    assert show_host("https://me:secret@hooks.example") == ""


def test_hosts_are_compared_with_their_ports() -> None:
    assert is_at("https://h:8443/x", ("h:8443",))
    assert not is_at("http://h", ("h",))


@pytest.mark.parametrize(
    ("no_proxy", "spared"),
    [("", False), ("*", True), ("10.0.0.0/8", True), ("10.1.2.3", True), ("10.1.2.3:443", True), ("10.1.2.3:80", False),
     ("h, 10.1.0.0/16 ", True), ("11.0.0.0/8", False)],
)  # fmt: skip
def test_addresses_that_are_spared_the_proxy(no_proxy: str, spared: bool) -> None:
    assert is_spared(no_proxy, "10.1.2.3", 443) is spared
