"""Papermill runs of the notebooks: settings, one run, its report, and what can be done with it afterwards."""
