"""What do whole training runs show?"""
