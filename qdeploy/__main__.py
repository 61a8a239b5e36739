from qdeploy.cli.main import main

main()
