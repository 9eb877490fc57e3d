"""The process in which code that a model wrote runs. A script: it imports nothing of the package.

Reads its order (JSON) from standard input; tells on standard output "separated" and "filtered" as far as it got, then
the order's word with "passed" or what went wrong. Everything is given up before the program's first line.
"""

import builtins
import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER = 2
#: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC: a file may only be opened for reading.
WRITING = 0x1 | 0x2 | 0x40 | 0x200
#: Offsets in what the filter sees (struct seccomp_data) of number, processor and the low half of an argument.
NUMBER, PROCESSOR, ARGUMENTS = 0, 4, 16
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

#: Linux' numbers of the system calls that computing and importing need, for x86-64 and arm64; -1 where there is none.
SYSTEM_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, -1),
    "fstat": (5, 80),
    "lstat": (6, -1),
    "poll": (7, -1),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, -1),
    "select": (23, -1),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, -1),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, -1),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
#: Calls that open files: their numbers, and which of their arguments are the flags.
OPENING = {"open": ((2, -1), 1), "openat": ((257, 56), 2)}
#: By the machine's name: the column above, and how the filter sees the processor (AUDIT_ARCH).
PROCESSORS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
#: On x86-64, numbers from here on are of another calling convention.
FOREIGN = 0x40000000


def separate(libc):
    """Move into namespaces of its own, without network; False where the system does not let it."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS):
        return False
    with contextlib.suppress(OSError):
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"65534 {user} 1"),
            ("gid_map", f"65534 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    return True


def limit(order):
    """Set what the system counts: processor time, memory, output, processes, open files."""
    for kind, most in (
        (resource.RLIMIT_CPU, order["cpu_seconds"]),
        (resource.RLIMIT_AS, order["memory"]),
        (resource.RLIMIT_FSIZE, order["output"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def filter_calls(libc):
    """Give up every system call but those above; False where the kernel or processor has no such filter."""
    if platform.machine() not in PROCESSORS:
        return False
    program = b"".join(struct.pack("=HBBI", *step) for step in filter_of(platform.machine()))
    steps = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    whole = Filter(len(program) // 8, ctypes.addressof(steps))
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0) == 0


def filter_of(machine):
    """The filter's steps (code, skip if so, skip if not, value), in the kernel's packet-filter language."""
    column, processor = PROCESSORS[machine]
    refuse = REFUSE | errno.EPERM
    steps = [(LOAD, 0, 0, PROCESSOR), (EQUAL, 1, 0, processor), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if column == 0:
        steps += [(AT_LEAST, 0, 1, FOREIGN), (RETURN, 0, 0, refuse)]
    for numbers in SYSTEM_CALLS.values():
        if numbers[column] >= 0:
            steps += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    for numbers, flags in OPENING.values():
        if numbers[column] >= 0:
            steps += [
                (EQUAL, 0, 4, numbers[column]),
                (LOAD, 0, 0, ARGUMENTS + 8 * flags),
                (ANY_BIT, 0, 1, WRITING),
                (RETURN, 0, 0, refuse),
                (RETURN, 0, 0, ALLOW),
            ]
    return [*steps, (RETURN, 0, 0, refuse)]


def main():
    order = json.loads(sys.stdin.buffer.read())
    tell = os.dup(1)
    libc = ctypes.CDLL(None, use_errno=True)
    if separate(libc):
        os.write(tell, b"separated\n")
    # What the program prints goes into a file that the limit of output holds, and is thrown away.
    output = os.open("output", os.O_WRONLY | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.clear()
    for module in ("_socket", "_posixsubprocess"):  # what they do is refused by the filter as well
        sys.modules[module] = None  # type: ignore[assignment]
    sys.setrecursionlimit(1000)
    program = order["program"]
    word = order["word"].encode()
    limit(order)
    if not filter_calls(libc):
        os._exit(3)
    os.write(tell, b"filtered\n")
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "__builtins__": builtins})
        sys.stdout.flush()
        ended = b"passed"
    except BaseException as problem:
        text = " ".join(str(problem).split())[:100]
        ended = (
            f"{type(problem).__name__}: {text}".encode(errors="replace")
            if text
            else type(problem).__name__.encode()
        )
    os.write(tell, word + b" " + ended + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
