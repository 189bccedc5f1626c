"""Fetching of models and datasets: hf://, s3:// and https://, each file once, resumed and checked.

Every protocol only lists what there is (``RemoteFile``); one downloader fetches it. Nothing that is fetched is executed
or unpickled here.
"""
