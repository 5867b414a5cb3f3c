"""The filter decides by the call's number and its argument, as a small interpreter of BPF finds."""

import struct

import pytest

from ptl_fast.base import system_calls
from ptl_fast.base.system_calls import ALLOW, ALLOWED, CONDITIONS, MACHINES, REFUSE, program


def decide(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter returns for a call, as the kernel would run it."""
    given = [each & (2**64 - 1) for each in (*arguments, *[0] * 6)[:6]]
    architecture = MACHINES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, architecture, 0, *given)
    value, place, lines = 0, 0, program(machine)
    for _ in range(1000):
        kind, if_so, if_not, constant = lines[place]
        place += 1
        if kind == system_calls.LOAD:
            (value,) = struct.unpack_from("<I", data, constant)
        elif kind == system_calls.AND:
            value &= constant
        elif kind == system_calls.JUMP_EQUAL:
            place += if_so if value == constant else if_not
        else:
            return constant
    raise AssertionError("the filter does not end")


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_listed_is_allowed_and_nothing_else(machine: str) -> None:
    column = list(MACHINES).index(machine)
    allowed = {numbers[column] for numbers in ALLOWED.values()} - {None}
    conditional = {each.numbers[column] for each in CONDITIONS.values()} - {None}
    assert not allowed & conditional
    for number in range(600):
        if number not in conditional:
            assert decide(machine, number) == (ALLOW if number in allowed else REFUSE), number
            # x86-64's second numbers of the same calls
            assert decide(machine, number + 0x40000000) == REFUSE
        assert decide(machine, number, architecture=0x40000003) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "arguments", "verdict"),
    [
        ("fcntl", (3, 3), ALLOW),
        ("fcntl", (3, 8, 1), REFUSE),  # F_SETOWN
        ("fcntl", (3, 10, 9), REFUSE),  # F_SETSIG
        ("fcntl", (3, 4, 0o20000), REFUSE),  # F_SETFL
        ("ioctl", (3, 0x5401), ALLOW),
        ("ioctl", (3, 0x5412), REFUSE),  # TIOCSTI
        ("ioctl", (3, 0x8901), REFUSE),  # FIOSETOWN
        ("ioctl", (3, 2**32 + 0x5401), ALLOW),  # the kernel reads 32 bits
        ("prlimit64", (0, 7, 0), ALLOW),
        ("prlimit64", (12, 7, 0), REFUSE),
        ("prctl", (1, 0), REFUSE),  # PR_SET_PDEATHSIG
        ("openat", (-100, 0, 0o2000000), ALLOW),  # O_CLOEXEC
        ("openat", (-100, 0, 0o1), REFUSE),
        ("openat", (-100, 0, 0o2), REFUSE),
        ("openat", (-100, 0, 0o100), REFUSE),
        ("openat", (-100, 0, 0o1000), REFUSE),
    ],
)
def test_arguments_decide(
    machine: str, call: str, arguments: tuple[int, ...], verdict: int
) -> None:
    number = CONDITIONS[call].numbers[list(MACHINES).index(machine)]
    assert number is not None
    assert decide(machine, number, *arguments) == verdict


def test_jumps_fit_into_a_byte() -> None:
    for machine in MACHINES:
        assert all(max(line[1], line[2]) < 256 for line in program(machine))
