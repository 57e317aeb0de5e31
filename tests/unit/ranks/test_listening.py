"""The address on which rank 0 serves the board, with the sockets of this machine."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from spot_plugins.ranks.listening import addresses_of, listen

FAR = "198.51.100.7"  # reserved for documents, so that no interface of this machine has it
NOWHERE = "fe80::1"  # only together with the name of an interface it would be an address
LOCAL = ("localhost", ["127.0.0.1"])
OWN_NAME = ("node0", ["127.0.1.1"])  # as Debian writes it into /etc/hosts


def own_address():
    """An address of this machine that is no loopback address, or skip."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((FAR, 9))
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


def listened(*found):
    listener, has_the_address = listen(list(found), 4)
    with closing(listener):
        return listener.getsockname()[0], has_the_address


@pytest.mark.parametrize("found", [[LOCAL, LOCAL], [LOCAL, ("127.0.0.1", ["127.0.0.1"])], [(None, []), LOCAL]])
def test_a_job_of_one_machine_is_open_to_that_machine_alone(found):
    """However its ranks spell the address."""
    assert listened(*found) == ("127.0.0.1", True)


@pytest.mark.parametrize("own", [LOCAL, OWN_NAME])
def test_the_address_that_other_machines_have_is_the_one(own):
    """Rank 0 itself may know a loopback address, at which the others would find themselves."""
    address = own_address()

    assert listened(own, ("node0", [address]), ("node0.cluster", [address])) == (address, True)


def test_ranks_without_an_address_find_rank_0_by_its_own():
    """A job that met over a file has none."""
    address, has_the_address = listened((None, []), (None, []))

    assert has_the_address
    assert address not in ("0.0.0.0", "::")


def test_a_gateway_has_the_address():
    """The board listens on the interface that leads there, and each rank connects through the gateway."""
    address = own_address()

    assert listened(("public", [FAR]), ("public", [FAR])) == (address, False)


@pytest.mark.parametrize("told", ["0.0.0.0", "::"])
def test_all_interfaces_are_for_rank_0_to_ask_for(told):
    """MASTER_ADDR of rank 0 says so."""
    assert listened((told, [told]), LOCAL) == (told, False)


def test_an_address_of_no_machine_is_named():
    """Nothing can listen on it, and no way leads there."""
    with pytest.raises(OSError, match=rf"none of \['{NOWHERE}'\] belongs to this machine"):
        listened((NOWHERE, [NOWHERE]))


def test_what_does_not_resolve_has_no_addresses():
    """Nor is it an error: another spelling may."""
    assert addresses_of("no-such-host.invalid") == addresses_of("x" * 300) == addresses_of(None) == []
