"""What may a file of somebody else hold? Its members, records, arrays and hashes are checked before they are used.

Every reader raises `ValueError` with one sentence; who calls it names the file and what to do.
"""
