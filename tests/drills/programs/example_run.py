"""Runs one of the recipes in examples/ as ``python recipe.py ARGUMENTS`` would. Started by test_examples.py."""

from __future__ import annotations

import runpy
import sys
import warnings

import torch


def main(recipe, arguments):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.argv = [recipe, *arguments]
    runpy.run_path(recipe, run_name="__main__")
