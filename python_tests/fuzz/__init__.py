"""What happens when a file is damaged? Seeded fuzzers of every format; `python -m fuzz --help` from python_tests."""
