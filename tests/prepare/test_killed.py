"""A job that was killed, or whose files changed, goes on by the same command to the same folder."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest
from miniature import SOP, picture
from pyarrow import parquet

from guie.errors import UserError
from guie.prepare import shards

KILLED = """
import os, signal
from guie.prepare import shards
shards.SHARD_ROWS = 3
whole = shards.measure_shard
def measure_shard(task, pictures):
    done = whole(task, pictures)
    if task.shard.start == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
shards.measure_shard = measure_shard
import sys
from guie.cli import prepare
sys.argv[0] = "guie-prepare"
prepare.main()
"""


@pytest.fixture
def killed(raw, tmp_path):
    """Return the folder of a job that was killed with -9 after four of its seven shards."""
    arguments = [*SOP, f"raw={raw}", f"out={tmp_path / 'out'}", "workers=1"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.preparing"
    assert len(list((work / "shards").iterdir())) == 4
    return work


def test_a_killed_job_goes_on_and_ends_in_the_same_folder(killed, raw, prepared, read):
    out = prepared(*SOP, f"raw={raw}")
    assert len(read) == 20 - 12 and not killed.exists()
    straight = prepared(*SOP, f"raw={raw}", out="straight")
    for name in ("manifest.parquet", "summary.json", "bad_images.csv", "leakage.csv", "preview.html"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()


def test_a_file_that_changed_since_is_read_again(killed, raw, prepared, read):
    changed = raw / "chair_final" / "000000000005_2.JPG"
    changed.write_bytes(picture(55))
    out = prepared(*SOP, f"raw={raw}")
    assert len(read) == 20 - 12 + 3 and "chair_final/000000000005_2.JPG" in read
    hashes = parquet.read_table(out / "manifest.parquet").to_pydict()["sha256"]
    assert hashes[4] == hashlib.sha256(picture(55)).hexdigest()


def test_a_file_that_changes_while_it_is_read_is_an_error(raw, prepared, monkeypatch):
    whole = shards.measure_shard

    def disturbed(task, pictures):
        done = whole(task, pictures)
        os.utime(raw / task.places[0][0], ns=(1, 1))
        return done

    monkeypatch.setattr(shards, "measure_shard", disturbed)
    with pytest.raises(
        UserError, match=r"^raw: a file changed while it was read \(among rows 0 to 19: .*again"
    ):
        prepared(*SOP, f"raw={raw}")


def test_a_damaged_shard_is_named_and_made_again(killed, raw, prepared, read):
    shard = next((killed / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{shard.name}: damaged .* accepted: the same command again"):
        prepared(*SOP, f"raw={raw}")
    assert (prepared(*SOP, f"raw={raw}") / "manifest.parquet").exists()


ORPHANING = """
import os, signal, sys, threading, time
from guie.prepare import shards

shards.SHARD_ROWS = 3
measure = shards.measure
shards.measure = lambda data: (time.sleep(0.1), measure(data))[1]
begun = sys.argv.pop()

def kill_when_begun():
    while not os.path.isdir(begun) or not os.listdir(begun):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=kill_when_begun, daemon=True).start()
    from guie.cli import prepare

    prepare.main()
"""


def test_no_process_outlives_a_killed_job(raw, tmp_path):
    (tmp_path / "job.py").write_text(ORPHANING)
    arguments = [*SOP, f"raw={raw}", f"out={tmp_path / 'out'}", "workers=2"]
    begun = tmp_path / ".out.preparing" / "shards"
    # Every process of the job holds the pipe: it closes when the last of them is gone.
    done = subprocess.run(
        [sys.executable, tmp_path / "job.py", *arguments, begun],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert done.returncode == -9, done.stdout


def test_a_full_disk_is_one_line_and_what_was_read_is_kept(raw, prepared, read, monkeypatch):
    whole = shards.replace_file

    def full(path, data):
        if path.name.startswith("0000000009"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "replace_file", full)
        with pytest.raises(
            UserError, match=r"^out: No space left on device .*accepted: the same command again"
        ):
            prepared(*SOP, f"raw={raw}")
    prepared(*SOP, f"raw={raw}")
    assert len(read) == 12 + 20 - 9


def test_a_folder_that_was_being_replaced_when_killed_comes_back(raw, prepared):
    out = prepared(*SOP, f"raw={raw}")
    work = out.with_name(".out.preparing")
    work.mkdir()
    out.rename(work / "replaced")
    with pytest.raises(UserError, match="no folder"):
        prepared("dataset=sop", "raw=none")
    assert (out / "manifest.parquet").exists() and not work.exists()
