"""Block network access for stages that do not need it, so that models, data and libraries stay on this machine.

On Linux the kernel refuses sockets that leave the machine to the whole process, including native code and children
(seccomp, which needs no privilege and cannot be undone). On every system Python refuses them too, and explains why.
"""

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

from stages.core import plugins
from stages.params import Params

SERVED = ("endpoint", "openai")  # keys of a block that configures a model served over HTTP
ASK_NO_MODEL = ("report", "collect_feedback", "compare", "conclude")
# Address families that stay on this machine: a list of those that leave it would never be complete.
_LOCAL = tuple(int(getattr(socket, name)) for name in ("AF_UNIX", "AF_NETLINK") if hasattr(socket, name))
# Per machine: the audit architecture, and the numbers of the system calls socket(2) and seccomp(2).
_MACHINES = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
_IO_URING_SETUP = 425  # the same on every machine; io_uring opens sockets without socket(2)


def needs_network(stage: str, audit: str, params: Params) -> bool:
    """Whether a stage of an audit may need to reach another machine.

    It may if a model or judge is served over HTTP (`endpoint:`, `openai:`), if HF_HUB_OFFLINE=0 allows a model hub, or
    if the task is not one of Faded's, because its needs are unknown. Stages that query no model never do.
    """
    if stage in ASK_NO_MODEL:
        return False
    block = params.audit(audit)
    repair = params.repairs.get(audit)
    named = [block.prepare, block.discrepancy, repair.restructure.settings if repair is not None else {}]
    entry = None if ":" in block.task else plugins.entry_points_of(plugins.TASKS).get(block.task)
    module = block.task if entry is None else entry.module
    allowed = os.environ.get("HF_HUB_OFFLINE") == "0" or not module.startswith("stages.tasks.")
    return allowed or any(_has_endpoint(value) for value in named)


def is_served(block: object) -> bool:
    """Whether a block of params.yaml configures a model served over HTTP."""
    return isinstance(block, Mapping) and any(key in block for key in SERVED)


def _has_endpoint(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_served(value) or any(_has_endpoint(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_endpoint(inner) for inner in value)


def close_network(why: str) -> None:
    """Refuse this process all sockets that leave the machine, saying why; pipes and Unix sockets still work."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.__new__" and arguments[1] not in _LOCAL:
            raise PermissionError(errno.EACCES, why)

    sys.addaudithook(refuse)
    with contextlib.suppress(OSError, AttributeError):  # another system, or a container that allows no filter
        _filter_system_calls()


def _filter_system_calls() -> None:
    """Make the kernel return EACCES for sockets of other families, in all threads and children.

    Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
    """
    arch, socket_call, seccomp_call = _MACHINES.get(platform.machine(), (0, 0, 0))
    if not sys.platform.startswith("linux") or not arch:
        return
    load, equal, at_least, done = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
    refuse = (done, 0, 0, 0x00050000 | errno.EACCES)  # SECCOMP_RET_ERRNO
    allow = (done, 0, 0, 0x7FFF0000)
    families = len(_LOCAL)
    program = [  # each line: instruction, lines to skip if the comparison is true, and if it is false, operand
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, families + 5, arch),  # any process can make 32-bit system calls: refuse them all
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, families + 3, 0, 0x40000000),  # x32, a third ABI
        (equal, families + 2, 0, _IO_URING_SETUP),
        (equal, 0, families + 2, socket_call),
        (load, 0, 0, 16),  # first argument, the address family
        *((equal, families - n, 0, family) for n, family in enumerate(_LOCAL)),
        refuse,
        allow,
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which a filter needs privileges
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if libc.syscall(seccomp_call, 1, 1, ctypes.create_string_buffer(filter_)):  # SECCOMP_SET_MODE_FILTER, TSYNC
        raise OSError(ctypes.get_errno(), "seccomp")
