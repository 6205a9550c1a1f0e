"""Data contracts (Open Data Contract Standard v3) and the small code that reads them."""

from schemas.contract import Column, Contract, Dialect, Rule, read_contract

__all__ = ["Column", "Contract", "Dialect", "Rule", "read_contract"]
