"""
### Notifications

Every two minutes: looks for what has gone wrong, and sends it to the receivers that `NOTIFY` in `.env`
names (mail, Slack, Teams, any webhook), as one message for all of it: a scan that failed for good, NERSC or
Globus out of service and back, NERSC's client about to expire, a flight check that failed, missed scans, a
scan that is late. The limits are in `beamline.yaml` (`notify`).

**At most one message** in half an hour about events of the same kind, however many there are. Runs that a
person has ended are left out.

**What you see.** The log has the subject of each message; so does the result. Usually nothing is sent, and
the task takes a second or two. Without `NOTIFY` it does nothing.

**When it fails.** A receiver did not take its message; the last lines of the log name it and the reason.
The message is sent with the next run, and to nobody else again. No scan is affected. To stop the messages,
pause this DAG; when it is on again, it sends what has happened meanwhile, of the last three days.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from airflow.sdk import DAG

from cosmic.dag_constants import NOTIFY
from cosmic.failures import DEFAULT_ARGS
from cosmic.notifications.tasks import send_notifications

with DAG(
    dag_id=NOTIFY,
    dag_display_name="notify: messages to people when something is wrong",
    doc_md=__doc__,
    schedule="*/2 * * * *",
    catchup=False,
    max_active_runs=1,
    default_args={**DEFAULT_ARGS, "retries": 1},  # the next run comes soon
    tags=["bl7012", "cosmic"],
) as dag:
    send_notifications()
