"""What is it compared with?"""
