# The image of every Airflow service and, on top of it, the one of the stand-in for the facilities. DAGs, plugins and
# parts of include are mounted, not copied: an update of the bundle is a checkout and a restart, without a build.
ARG AIRFLOW_IMAGE=apache/airflow:3.3.2-python3.11

FROM ${AIRFLOW_IMAGE} AS airflow
USER root
# Where volumes are mounted. A new volume takes its owner and mode from here, so that no service needs to be
# root to write to it, whatever the user id it runs with: the group is always 0.
RUN mkdir -p /keys /config /standin /queue /kept_results /metrics /opt/airflow/logs /opt/airflow/dag_bundles \
    && chown airflow:0 /keys /config /standin /queue /kept_results /metrics /opt/airflow /opt/airflow/logs /opt/airflow/dag_bundles \
    && chmod 2770 /keys /config /standin /queue /kept_results /metrics /opt/airflow/logs /opt/airflow/dag_bundles \
    && chmod g+rwx /opt/airflow
USER airflow
WORKDIR /opt/airflow
COPY constraints.txt requirements.txt pyproject.toml include/deployment/install-requirements \
     include/deployment/image-requirements.txt /requirements/
# The imports show that the image's parts fit each other, before a service fails for it at its start.
# pyproject.toml installs as metadata alone, by which Airflow finds the connection types in plugins/: it comes last,
# since from then on Airflow starts only where plugins/ is mounted.
RUN cd /requirements && bash install-requirements constraints.txt requirements.txt image-requirements.txt \
    && AIRFLOW_CONFIG=/tmp/airflow.cfg AIRFLOW__CORE__EXECUTOR=CeleryExecutor python -W ignore -c "import \
        airflow.providers.celery.executors.celery_executor, airflow.providers.fab.auth_manager.fab_auth_manager, \
        airflow.providers.git.bundles.git, apprise, globus_sdk, psycopg2, redis, sfapi_client, statsd" >/dev/null \
    && rm -f /tmp/airflow.cfg \
    && pip install --no-cache-dir --disable-pip-version-check -q --no-deps .
ENV PYTHONPATH=/opt/airflow/plugins:/opt/airflow/include \
    PYTHONDONTWRITEBYTECODE=1 \
    AIRFLOW_CONFIG=/config/airflow.cfg

FROM airflow AS standin
COPY requirements-dev.txt /requirements/
RUN grep -E '^(array-api-compat|h5py|numpy|pillow)==' /requirements/requirements-dev.txt >/tmp/standin.txt \
    && bash /requirements/install-requirements /requirements/constraints.txt /tmp/standin.txt
