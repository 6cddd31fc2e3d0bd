"""Synthetic cine cardiac MRI: sampled physiology → moving shapes → a vendor's images → raw ACDC and M&Ms folders."""

from site_agent.data.phantom.case import PhantomCase, sample_case, sample_pair
from site_agent.data.phantom.cohort import write_cohort
from site_agent.data.phantom.profile import DIAGNOSES, VENDORS, Diagnosis, PhantomConfig, Vendor

__all__ = [
    "DIAGNOSES",
    "VENDORS",
    "Diagnosis",
    "PhantomCase",
    "PhantomConfig",
    "Vendor",
    "sample_case",
    "sample_pair",
    "write_cohort",
]
