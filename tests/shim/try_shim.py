"""Writes, syncs and forgets on a disk that is watched, then dies: what must be left is in tests/durable.rs."""

import errno
import os
import signal
import time

SWITCHES = os.environ["SHIM_DIR"]
os.chdir(os.environ["SHIM_ROOT"])


def switch(name, value):
    path = os.path.join(SWITCHES, name)
    if value is None:
        os.remove(path)
    else:
        with open(path, "w") as file:
            file.write(value)


def make(name):
    return os.open(name, os.O_RDWR | os.O_CREAT)


def fails(call, code):
    try:
        call()
    except OSError as error:
        assert error.errno == code, error
    else:
        raise AssertionError(f"no {errno.errorcode[code]}")


def sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


appended = make("appended")
os.write(appended, b"synced")
os.fsync(appended)
os.write(appended, b", not synced")

overwritten = make("overwritten")
os.ftruncate(overwritten, 1 << 20)
os.fdatasync(overwritten)
os.pwrite(overwritten, b"kept", 4096)
os.fdatasync(overwritten)
os.pwrite(overwritten, b"lost", 4096)
os.pwrite(overwritten, b"lost", 8192)

cut = make("cut")
os.write(cut, b"0123456789")
os.fsync(cut)
os.ftruncate(cut, 4)
os.lseek(cut, 8, os.SEEK_SET)
os.write(cut, b"89")
os.fsync(cut)
os.ftruncate(cut, 0)

os.write(make("never"), b"never synced")

os.mkdir("folder")
inside = make("folder/inside")
os.writev(inside, [b"in", b"side"])
os.fsync(inside)
sync_folder("folder")
sync_folder(".")

os.write(make("nothing of it"), b"neither it nor its folder was synced since")

late = make("late.new")
os.write(late, b"late")
os.fsync(late)
os.rename("late.new", "late")
os.remove("old")

failed = make("failed")
os.write(failed, b"aaaa")
os.fsync(failed)
switch("sync_errno", "EIO")
os.write(failed, b"bbbb")
fails(lambda: os.fsync(failed), errno.EIO)
switch("sync_errno", None)
os.write(failed, b"cccc")
os.fsync(failed)

switch("write_errno", "ENOSPC")
fails(lambda: os.write(failed, b"dddd"), errno.ENOSPC)
fails(lambda: os.ftruncate(failed, 0), errno.ENOSPC)
os.fsync(failed)
switch("write_errno", None)

switch("delay_ms", "100")
begun = time.monotonic()
os.fsync(failed)
assert 0.1 <= time.monotonic() - begun < 5
switch("delay_ms", None)

os.kill(os.getpid(), signal.SIGKILL)
