"""`imgtool net …`: the words, where no network is needed. What it does to one is in tests/machine/nets."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Imgtool


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "either --nat SUBNET or --bridge NIC"),
        (("--nat", "10.77.0.0/24", "--bridge", "eth1"), "either --nat SUBNET or --bridge NIC"),
        (("--nat", "10.77.0.1/24"), "an address inside a subnet"),
        (("--nat", "10.77.0.0/31"), "no room"),
        (("--nat", "10.77.0.0/24", "--dhcp-range", "10.78.0.1-10.78.0.9"), "is not a guest's address"),
        (("--nat", "10.77.0.0/24", "--forward", "8080:80"), "forwards no port"),
        (("--nat", "10.77.0.0/24", "--bridge-name", "much-too-long-a-name"), "is not a name for a bridge"),
        (("--bridge", "eth1", "--no-dhcp", "--ipv6", "fd42:1::/64"), "--no-dhcp, --ipv6 and --bridge do not go"),
        (("--nat", "10.77.0.0/24", "--nonsense"), "No such option"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(
    imgtool: Imgtool, words: tuple[str, ...], reason: str
) -> None:
    refused = imgtool("net", "create", "lab", *words, "--output", "json")
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.error["code"] == "usage"
    assert reason in refused.error["message"]
    assert refused.error["hint"] or "either" in reason


@pytest.mark.parametrize("verb", ["create", "show", "delete"])
def test_a_name_that_leads_elsewhere_is_refused_and_shown_harmlessly(imgtool: Imgtool, verb: str) -> None:
    options = ["--nat", "10.77.0.0/24"] if verb == "create" else []
    refused = imgtool("net", verb, "../../etc\x1b[2J", *options)
    assert refused.status == 2
    assert "'../../etc\\x1b[2J' is not a name for a network" in refused.stderr
    assert "\x1b" not in refused.stderr


@pytest.mark.parametrize("verb", ["create", "list", "show", "delete"])
def test_each_command_explains_itself_with_examples(imgtool: Imgtool, verb: str) -> None:
    shown = imgtool("net", verb, "--help")
    assert shown.status == 0
    assert f"imgtool net {verb}" in shown.stdout.partition("Examples:")[2]


def test_the_group_lists_its_commands(imgtool: Imgtool) -> None:
    shown = imgtool("net", "--help").stdout
    assert [verb for verb in ("list", "show", "create", "delete") if f"\n  {verb} " in shown] == [
        "list",
        "show",
        "create",
        "delete",
    ]
