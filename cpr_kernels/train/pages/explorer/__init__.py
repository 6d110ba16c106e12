"""How is mining looked into, row by row and stage by stage, in one HTML page?"""
