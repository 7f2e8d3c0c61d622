"""Deployments: designs of tracked runs, proved on their device."""
