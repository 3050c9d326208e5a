import threading, subprocess, time, os
def test_x(head, tmp_path):
    r = head.run("python","-m","cluster.submit","--address",head.address,"--","raycrt","train","--out",str(tmp_path),"--set","train.epochs=2","--set","data.limit=100","--set","model.width=8","--set","search.rungs=[]")
    assert r.returncode==0, r.stdout+r.stderr
    base=head.environment["HOME"]
    subprocess.Popen(["bash","-c",f"for i in $(seq 14); do sleep 3; date; ps -eo pid,ppid,pgid,sid,etimes,cmd --sort pid | grep -E '{base}|ray::' | grep -v grep | cut -c1-130; done > /tmp/cl_ps.txt; "], start_new_session=True)
    subprocess.Popen(["bash","-c",f"for i in $(seq 100); do sleep 0.5; cp {base}/ray/session_latest/logs/raylet.out /tmp/cl_raylet.out; cp {base}/head.log /tmp/cl_head.log; cp {base}/ray/session_latest/logs/gcs_server.out /tmp/cl_gcs.out; done 2>/dev/null"], start_new_session=True)
