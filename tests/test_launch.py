"""The launch scripts: they parse, say what they would do, refuse what cannot work; two local processes really train."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdd_jax.main import STOPPED

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
JOB = ["--config=configs/ccd_sr.py:sd15", "--workdir=/mnt/run", "--config.data.path=a b"]
TPU = ["--name=pod", "--zone=europe-west4-b"]
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
_GCLOUD = """#!/usr/bin/env bash
# One machine: what state it is in, and what was asked of it. What FAILS names fails with SAYS, of "ssh" and "first" the
# first attempt. The first job ends with ENDS, its machine then being in the state AFTER.
cd "$CLOUD"
verb=$4
case "$*" in *sdd_jax.main*) verb=run ;; esac
[ "$verb" = describe ] || echo "$verb" >> asked
count="$(grep -c "$verb" asked)"
case "$verb $count ${FAILS:-}" in
  "describe "*" describe" | "create "*" create" | "ssh 1 ssh" | "create "[1-7]" capacity")
    echo "WARNING: look" >&2
    echo "${SAYS:-}" >&2
    exit 1 ;;
  describe*)
    [ -f state ] || { echo "ERROR: (gcloud) NOT_FOUND: Resource 'nodes/pod' was not found. Whose?" >&2; exit 1; }
    cat state ;;
  create*) echo READY > state ;;
  delete*) rm state ;;
  "run 1 "*) echo "${AFTER:-READY}" > state; exit "$ENDS" ;;
esac
"""


def launch(script, *arguments, timeout=60, **settings):
    settings = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": sys.executable, **settings}
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments], env=settings, capture_output=True, text=True, timeout=timeout
    )


def dry(script, *arguments, **settings):
    """The commands that a dry run shows."""
    done = launch(script, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "nothing is run"
    return [line.removeprefix("+ ") for line in done.stderr.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    checker = shutil.which("shellcheck", path=TOOLS)
    assert checker, "pip install 'sdd_jax[test]' brings it"
    done = subprocess.run([checker, "-x", "-s", "bash", script], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert script.name == "common.sh" or os.access(script, os.X_OK)


def test_a_pod_is_created_installed_run_and_deleted():
    resume = ["resume", "--dry-run", *TPU, "--type=v5litepod-16", "--spot", "--project=p", "--nfs=10.0.0.2:/share"]
    lines = dry("tpu_vm.sh", *resume, "--", *JOB)
    assert all("--zone=europe-west4-b --project=p" in line for line in lines if line.startswith("gcloud"))
    assert lines[0].startswith("gcloud compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 ")
    assert "--version=v2-alpha-tpuv5-lite --spot" in lines[0]
    assert " archive " in lines[1] and " scp " in lines[2] and "--worker=all" in lines[2]
    assert "10.0.0.2:/share" in lines[-2]
    assert "--worker=all" in lines[-1] and "sdd_jax.main" in lines[-1] and "--distributed" in lines[-1]
    assert dry("tpu_vm.sh", "delete", "--dry-run", *TPU) == [
        "gcloud compute tpus tpu-vm delete pod --quiet --zone=europe-west4-b"
    ]


@pytest.fixture
def cloud(tmp_path):
    """What a launch needs to find a cloud that has no machine yet; `asked` is there afterwards."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "asked").touch()
    for name, text in (("gcloud", _GCLOUD), ("git", "#!/bin/sh\n"), ("sleep", "#!/bin/sh\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CLOUD": str(tmp_path), "TMPDIR": str(tmp_path)}


RESUME = ["resume", *TPU, "--type=v5litepod-16", "--spot", "--", *JOB]


MADE = ["create", "scp", "ssh", "run"]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"ENDS": "255", "AFTER": "PREEMPTED"}, [*MADE, "delete", *MADE]),
        ({"ENDS": str(STOPPED), "AFTER": "PREEMPTED"}, [*MADE, "delete", *MADE]),
        ({"ENDS": str(STOPPED), "AFTER": "READY"}, [*MADE, "run"]),
        ({"ENDS": "0", "AFTER": "PREEMPTED"}, MADE),
        ({"ENDS": "0", "FAILS": "ssh"}, [*MADE[:3], *MADE[1:]]),
        ({"ENDS": "0", "FAILS": "capacity", "SAYS": "There is no more capacity in the zone"}, ["create"] * 7 + MADE),
    ],
    ids=["gone", "saved and gone", "saved and there", "finished", "installed again", "waited for"],
)
def test_a_machine_is_made_and_the_job_run_until_it_is_finished(cloud, tmp_path, settings, asked):
    done = launch("tpu_vm.sh", *RESUME, **cloud, **settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().split() == asked


@pytest.mark.parametrize(
    ("settings", "told", "asked"),
    [
        ({"ENDS": "1"}, "the job failed on a healthy pod", MADE),
        ({"FAILS": "describe", "SAYS": "PERMISSION_DENIED"}, "gcloud does not tell the state of pod", []),
        ({"FAILS": "create", "SAYS": "Quota limit exceeded"}, "pod cannot be created", ["create"] * 5),
    ],
)
def test_what_stays_wrong_is_not_repeated_for_ever(cloud, tmp_path, settings, told, asked):
    done = launch("tpu_vm.sh", *RESUME, **cloud, **settings)
    assert done.returncode == 2 and done.stderr.endswith(f"error: {told}: its error is above\n")
    assert settings.get("SAYS", "") in done.stderr
    assert (tmp_path / "asked").read_text().split() == asked


def test_slurm_and_one_node():
    (line,) = dry("slurm.sh", "--dry-run", *JOB)
    assert line.startswith("srun ") and line.endswith(r"--distributed " + " ".join(JOB).replace("a b", r"a\ b"))
    (line,) = dry("slurm.sh", "--dry-run", *JOB, SLURM_CPUS_PER_TASK="8")
    assert "--cpus-per-task=8 " in line
    (line,) = dry("multi_gpu.sh", "--dry-run", "--gpus=0,1", "--", *JOB)
    assert r"CUDA_VISIBLE_DEVICES=0\,1" in line and "--distributed" not in line
    assert "--signal=B:TERM@120" in (LAUNCH / "slurm.sh").read_text()


def test_local_processes_share_a_coordinator():
    lines = dry("local.sh", "--dry-run", "--processes=3", "--devices=2", "--", *JOB)
    assert [f"JAX_PROCESS_ID={i} " in line for i, line in enumerate(lines)] == [True] * 3
    assert len({next(word for word in line.split() if "COORDINATOR" in word) for line in lines}) == 1
    assert all("JAX_NUM_PROCESSES=3 " in line and "JAX_NUM_CPU_DEVICES=2 " in line for line in lines)
    assert all(" -m sdd_jax.main --distributed " in line for line in lines)
    lines = dry("local.sh", "--dry-run", "--processes=99", "--devices=0", "--", *JOB)
    assert len({next(word for word in line.split() if "CUDA_VISIBLE" in word) for line in lines}) == 99
    done = launch("local.sh", "--dry-run", "--", "--protocol=editing", PROGRAM="evaluate")
    assert done.stderr.count(" -m sdd_jax.evaluate --distributed --protocol=editing\n") == 2


_SAVES = """#!/usr/bin/env bash
# In python's place: gives a port, or runs until it is asked to stop and then takes a moment to save.
if [ "$1" = -c ]; then echo 1; exit; fi
trap 'sleep .3; echo saved >> "$LOGS/saved"; exit 75' TERM
echo running >> "$LOGS/running"
while true; do sleep .05; done
"""


def test_a_local_launch_that_is_stopped_waits_for_its_processes(tmp_path):
    python, running = tmp_path / "python", tmp_path / "running"
    python.write_text(_SAVES)
    python.chmod(0o755)
    settings = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOGS": str(tmp_path)}
    with subprocess.Popen(
        ["bash", LAUNCH / "local.sh", "--", "--config=c"], env=settings, stderr=subprocess.PIPE
    ) as job:
        deadline = time.monotonic() + 30
        while not (running.exists() and running.read_text().count("\n") == 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        job.terminate()
        assert job.wait(30) == STOPPED
        assert (tmp_path / "saved").read_text().split() == ["saved"] * 2
        assert b"error" not in job.stderr.read()


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("local.sh", ["--processes=2"], "no job"),
        ("local.sh", ["--processes=0", "--", "--config=c"], "--processes=0"),
        ("local.sh", ["--processes=9999", "--devices=0", "--", "--config=c"], "9999 processes need as many GPUs"),
        ("multi_gpu.sh", ["--config=c"], "unknown option --config=c"),
        ("slurm.sh", [], "no job"),
        ("slurm.sh", ["--config=c"], "sbatch"),
        ("tpu_vm.sh", ["start"], "say what to do"),
        ("tpu_vm.sh", ["create", "--name=pod"], "--zone"),
        ("tpu_vm.sh", ["create", *TPU], "--type"),
        ("tpu_vm.sh", ["run", *TPU], "no job"),
    ],
)
def test_mistakes_are_one_line(script, arguments, told):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert told in done.stderr and done.stderr.count("\n") == 1


def test_two_processes_of_two_devices_train_one_job(tmp_path):
    job = [
        "--config=configs/pretrain_portraits.py:classifier,debug",
        "--config.tower.widths=(8,8)",
        "--config.tower.strides=(4,4)",
        "--config.optimizer.name=adamw",
        "--config.data.count=8",
        "--config.compile_cache=",
    ]
    arguments = ["--processes=2", "--devices=2", "--", *job, f"--workdir={tmp_path / 'run'}"]
    done = launch("local.sh", *arguments, timeout=600, SDD_JAX_CACHE=str(tmp_path / "cache"), LOGS=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "devices: 4 cpu" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4], "one process writes"


@pytest.mark.slow
def test_two_processes_precompute_the_bytes_of_one(tmp_path, tiny_world):
    job = [
        "--config=configs/ccd_sr.py:debug",
        f"--config.model={tiny_world}",
        "--config.adapter.embedding_channels=(4, 4, 8)",
        "--config.data.count=7",
        "--config.compile_cache=",
    ]
    settings = {"PROGRAM": "precompute", "SDD_JAX_CACHE": str(tmp_path / "cache"), "LOGS": str(tmp_path)}
    for processes in (1, 2):
        arguments = [f"--processes={processes}", "--", *job, "--batch=2", "--shard=4", f"--out={tmp_path / 'made'}"]
        done = launch("local.sh", *arguments, timeout=600, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        (tmp_path / "made").rename(tmp_path / f"by_{processes}")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / f"by_{n}").iterdir()} for n in (1, 2))
    assert one == two and {"manifest.json", "records-00000.array_record", "records-00001.array_record"} <= one.keys()


def test_a_failed_process_fails_the_launch(tmp_path):
    done = launch("local.sh", "--", "--config=missing.py", f"--workdir={tmp_path}", timeout=300, LOGS=str(tmp_path))
    assert done.returncode == 2
    assert "missing.py" in done.stderr
