"""Which op is measured, on which inputs?"""
