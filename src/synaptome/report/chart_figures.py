"""A chart over all runs as a figure of synaptic measures."""

from __future__ import annotations

from dataclasses import dataclass

from synaptome.report import figures
from synaptome.report.curves import Chart, csv_text
from synaptome.report.markup import Html


@dataclass(frozen=True)
class ChartFigure:
    """A chart as a figure of measures.

    Attributes:
        chart: mean and spread over the runs of each group.
        several: as in `figures.panels`.
        name: stem of the CSV file.
        heading: says the quantity.
        note: what a reader should know, below the figure.
    """

    chart: Chart
    several: bool
    name: str
    heading: str
    note: str

    def legend(self) -> Html:
        """What the curves stand for."""
        return figures.legend(self.chart, self.several)

    def csv_text(self) -> str:
        """See `curves.csv_text`."""
        return csv_text(self.chart)

    def drawings(self, prefix: str) -> list[tuple[str, list[tuple[str, Html]]]]:
        """One drawing, or one for each split in a row."""
        drawn = [svg for _, svg in figures.panels(self.chart, self.several, prefix)]
        labels = self.chart.splits if len(drawn) > 1 else [""]
        return [("", list(zip(labels, drawn, strict=True)))]
