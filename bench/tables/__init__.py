"""How are results written down?"""
