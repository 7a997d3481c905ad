"""Adapters: one file per dataset."""
