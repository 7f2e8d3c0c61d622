"""The Pareto front of tracked runs: `python analyze.py study=first 'where=accuracy > 0.9'` (see --help)."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dxc.config.compose import resolved
from dxc.config.hidden import hide_command_line
from dxc.config.names import quote_texts
from dxc.errors import exit_cleanly


@hydra.main(version_base="1.3", config_path="conf/analysis", config_name="analyze")
def main(cfg: DictConfig) -> None:
    with exit_cleanly():
        print("analyze: reading the question and the runs", file=sys.stderr, flush=True)
        from dxc.analysis.analyze import analyze
        from dxc.analysis.compression import compression_table
        from dxc.analysis.mapped import map_table
        from dxc.analysis.on_device import deployment_table
        from dxc.analysis.questions import Questions
        from dxc.report.compression import print_compression
        from dxc.report.findings import print_findings
        from dxc.report.map_table import print_map_table
        from dxc.report.on_device import print_deployment

        asked = Questions.of(resolved(cfg))
        if asked.table == "compression":
            table, folder = compression_table(asked)
            print_compression(table.frame, table.metrics, folder, title=table.title, lines=table.lines)
        elif asked.table == "deployment":
            deployment, folder = deployment_table(asked)
            print_deployment(deployment.frame, folder, title=deployment.title, lines=deployment.lines)
        elif asked.table == "map":
            maps, folder = map_table(asked)
            print_map_table(maps.frame, folder, title=maps.title, lines=maps.lines)
        else:
            print_findings(*analyze(asked))


if __name__ == "__main__":
    sys.argv[1:] = quote_texts(sys.argv[1:], ("where", "choose.where", "compare"))
    hide_command_line()
    main()
