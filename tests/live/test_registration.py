"""What Airflow has found of the bundle: the connections' forms, and the plugins."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from support.live import Live

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


def test_the_ui_has_forms_for_both_connection_types(live_airflow: Live) -> None:
    forms = {
        form["connection_type"]: form for form in live_airflow.rest.call("GET", "/ui/connections/hook_meta")
    }
    globus, superfacility = forms["globus"], forms["superfacility"]
    assert globus["standard_fields"]["login"]["title"] == "Client ID"
    assert globus["standard_fields"]["password"]["title"] == "Client secret"
    assert "transfer_base_url" in globus["extra_fields"]
    assert "client_id_file" in superfacility["extra_fields"]


def test_the_bundle_is_a_provider_with_the_version_of_pyproject_toml(live_airflow: Live) -> None:
    providers = live_airflow.rest.call("GET", "/api/v2/providers?limit=100")["providers"]
    (ours,) = [each for each in providers if each["package_name"] == "cosmic-airflow-bundle"]
    assert ours["version"] == version("cosmic-airflow-bundle")


def test_the_local_airflow_has_its_own_plugin_besides_the_bundles(live_airflow: Live) -> None:
    plugins = live_airflow.rest.call("GET", "/api/v2/plugins?limit=100")["plugins"]
    names = {plugin["name"] for plugin in plugins}
    assert {"cosmic", "local_airflow_one_writer"} <= names
    assert live_airflow.rest.call("GET", "/api/v2/plugins/importErrors")["total_entries"] == 0
