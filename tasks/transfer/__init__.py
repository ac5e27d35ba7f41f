"""Bytes to hosts: resumable, verified, limited. What every subject that moves files uses."""
