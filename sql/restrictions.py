"""Restricts a process for good: it can read, compute and answer, but change no file and start no program.

The kernel refuses the system calls (seccomp), so it does not matter which code makes them. Linux on x86-64 and ARM64.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from pathlib import Path

from shards.errors import FairfaceError

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # of linux/prctl.h
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1  # of linux/seccomp.h
# of linux/bpf_common.h: load a word of the call's data, compare it, return
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
UNKNOWN = 0x00050000 | 38  # with ENOSYS
Instructions = list[tuple[int, int, int, int]]  # code, instructions to skip if true, if false, operand
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16  # in struct seccomp_data
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

CLONE_THREAD = 0x10000  # of linux/sched.h
CLONE3 = 435  # its flags lie in memory, where no filter sees them: glibc then starts threads by clone
SET_FLAGS = (0x40086602, 0x401C5820)  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR of linux/fs.h: change a file that is read

# For each machine: AUDIT_ARCH of linux/audit.h, the number of seccomp(), and the numbers of the refused calls.
# x86-64's own numbers come first; those from 424 on are the same on every machine.
NEW_CALLS = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "fchmodat2": 452,
}
LAST_KNOWN_CALL = 462  # what later kernels add is refused
X86_64_CALLS = {
    "socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "socketpair": 53,
    "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "truncate": 76, "ftruncate": 77,
    "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "utime": 132, "mknod": 133,
    "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "init_module": 175, "delete_module": 176, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "tkill": 200, "utimes": 235, "kexec_load": 246,
    "mkdirat": 258, "mknodat": 259, "fchownat": 260, "futimesat": 261, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "fchmodat": 268, "unshare": 272, "utimensat": 280, "fallocate": 285, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_writev": 311, "finit_module": 313, "renameat2": 316,
    "kexec_file_load": 320, "bpf": 321, "execveat": 322,
    "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "msgget": 68, "msgsnd": 69,
    "msgrcv": 70, "msgctl": 71, "rt_sigqueueinfo": 129, "setpriority": 141, "sched_setparam": 142,
    "sched_setscheduler": 144, "acct": 163, "settimeofday": 164, "sethostname": 170, "setdomainname": 171,
    "sched_setaffinity": 203, "clock_settime": 227, "mq_open": 240, "mq_unlink": 241, "add_key": 248,
    "request_key": 249, "keyctl": 250, "ioprio_set": 251, "rt_tgsigqueueinfo": 297, "prlimit64": 302,
    "clock_adjtime": 305, "setrlimit": 160, "tgkill": 234, "adjtimex": 159, "quotactl": 179, "userfaultfd": 323,
}  # fmt: skip
ARM64_CALLS = {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "umount2": 39,
    "mount": 40, "pivot_root": 41, "truncate": 45, "ftruncate": 46, "fallocate": 47, "chroot": 51, "fchmod": 52,
    "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "unshare": 97, "kexec_load": 104,
    "init_module": 105, "delete_module": 106, "ptrace": 117, "kill": 129, "tkill": 130, "reboot": 142,
    "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "connect": 203, "sendto": 206, "sendmsg": 211,
    "execve": 221, "swapon": 224, "swapoff": 225, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268,
    "process_vm_writev": 271, "finit_module": 273, "renameat2": 276, "bpf": 280, "execveat": 281,
    "kexec_file_load": 294,
    "shmget": 194, "shmctl": 195, "shmat": 196, "semget": 190, "semctl": 191, "semop": 193, "msgget": 186,
    "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "rt_sigqueueinfo": 138, "setpriority": 140, "sched_setparam": 118,
    "sched_setscheduler": 119, "acct": 89, "settimeofday": 170, "sethostname": 161, "setdomainname": 162,
    "sched_setaffinity": 122, "clock_settime": 112, "mq_open": 180, "mq_unlink": 181, "add_key": 217,
    "request_key": 218, "keyctl": 219, "ioprio_set": 30, "rt_tgsigqueueinfo": 240, "prlimit64": 261,
    "clock_adjtime": 266, "setrlimit": 164, "tgkill": 131, "adjtimex": 171, "quotactl": 60, "userfaultfd": 282,
}  # fmt: skip
MACHINES = {  # name -> AUDIT_ARCH, seccomp, refused calls, calls that open files -> index of their flags, clone, ioctl
    "x86_64": (0xC000003E, 317, X86_64_CALLS, {2: 1, 257: 2}, 56, 16),
    "aarch64": (0xC00000B7, 277, ARM64_CALLS, {56: 2}, 220, 29),
}


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends."""
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def limit_memory(size: int) -> None:
    """Let allocations fail once this process has `size` bytes more than now, with room for its threads' stacks."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    stacks = (os.cpu_count() or 1) << 23
    resource.setrlimit(resource.RLIMIT_DATA, (used + size + stacks, used + size + stacks))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forbid_writing() -> None:
    """Refuse, in all threads and for good, every system call that changes a file or starts a program.

    Writing to what is open already, such as a pipe, is allowed. Raises FairfaceError on systems that can't do that.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise FairfaceError(f"typed SQL can't be run safely on {platform.machine()}: use `fairface sql --views`")
    architecture, seccomp, calls, opening, clone, ioctl = machine
    instructions = [
        *_start(architecture),
        *_refuse([*calls.values(), *NEW_CALLS.values()]),
        *(one for number, index in opening.items() for one in _refuse_if(number, index, bits=WRITING)),
        *_refuse_if(clone, 0, bits=CLONE_THREAD, unless=True),
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, UNKNOWN),
        *(one for request in SET_FLAGS for one in _refuse_if(ioctl, 1, value=request)),
        (RETURN, 0, 0, ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    header = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(program))
    libc = _libc()
    failed = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.c_char_p(header)
    )
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise FairfaceError(f"typed SQL can't be run safely on this system ({reason}): use `fairface sql --views`")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _start(architecture: int) -> Instructions:
    """Refuse calls of another architecture, and those that are not known yet."""
    return [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER_OFFSET),
        (AT_LEAST, 0, 1, LAST_KNOWN_CALL + 1),  # also the x32 calls of x86-64, which have a high bit
        (RETURN, 0, 0, REFUSE),
    ]


def _refuse(numbers: list[int]) -> Instructions:
    return [one for number in numbers for one in ((EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE))]


def _refuse_if(
    number: int, argument: int, *, bits: int | None = None, value: int | None = None, unless: bool = False
) -> Instructions:
    """Refuse a call whose argument has one of `bits` (or, with `unless`, none), or equals `value`."""
    test = (EQUAL, value) if bits is None else (ANY_BIT, bits)
    return [
        (EQUAL, 0, 4, number),
        (LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument),  # its low half on these machines
        (test[0], int(unless), int(not unless), test[1] or 0),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER_OFFSET),
    ]
