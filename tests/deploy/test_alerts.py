"""The alert rules ask for metrics that there are."""

import re
from pathlib import Path

from node.metrics import Metrics

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts.yml"


def test_every_metric_of_the_alerts_is_one_of_the_nodes() -> None:
    known = {
        line.split()[2] for line in Metrics().render().decode().splitlines() if line.startswith("# TYPE ")
    }
    asked = re.findall(r"quasar_[a-z_]+", "".join(re.findall(r"expr: (.*)", ALERTS.read_text())))
    assert len(asked) >= 4
    assert set(asked) <= known
