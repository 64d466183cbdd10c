"""The closed loop on screen: a worse version is deployed, noticed, rolled back, and the serving process follows.

With Debian's Prometheus and Alertmanager everything is real: they scrape the serving process, evaluate the shipped
rules and call the receiver. Where they are not installed, the monitor inside the serving process weighs the scores of
the answers instead. Everything runs on loopback and ends with the demonstration.
"""
