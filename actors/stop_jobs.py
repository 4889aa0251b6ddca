"""Ask the jobs of a Ray cluster to end, and wait until they have: what a head pod does before it is stopped.

Usage: python -m actors.stop_jobs ADDRESS      (of the dashboard; on the node where the drivers run)

Kubernetes signals a container's first process only, and Ray ends its own in seconds. Here the driver itself gets
SIGTERM, while Ray is whole, and can write its checkpoint. It then ends with an exit code of its own, so that the job is
FAILED and KubeRay tries again; after `ray job stop` it would be STOPPED, which KubeRay takes as done.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def stop_jobs(address: str) -> None:
    """Returns when no job runs any more. The caller decides how long that may take."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    running = [job for job in client.list_jobs() if job.status == JobStatus.RUNNING and job.driver_info is not None]
    for job in running:
        os.kill(int(job.driver_info.pid), signal.SIGTERM)
    while any(not client.get_job_status(job.submission_id).is_terminal() for job in running):
        time.sleep(0.2)


if __name__ == "__main__":
    stop_jobs(sys.argv[1])
