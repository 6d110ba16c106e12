"""How is a number measured?"""
