-- What Perlmutter's own job_submit plugin does to a request, as far as its users have seen it: an
-- architecture must be named, and it decides the partition and the QOS that is recorded.
local DOUBLED = { debug = true, regular = true, preempt = true }

local function refuse(...)
    for _, text in ipairs({ ... }) do
        slurm.log_user(text)
    end
    slurm.log_user("Job request does not match any supported policy.")
    return slurm.ERROR
end

function slurm_job_submit(job, _, _)
    local features = job.features or ""
    local gpu, cpu = features:find("gpu"), features:find("cpu")
    if features == "" then
        return refuse("No architecture specified, cannot estimate job costs.")
    end
    if gpu and cpu then
        return refuse()
    end
    local qos = job.qos or "debug"
    if qos == "interactive" or qos:find("^gpu_") or qos:find("^regular_") then
        return refuse()
    end
    if gpu and DOUBLED[qos] then
        qos = "gpu_" .. qos
    elseif cpu and qos == "regular" then
        qos = "regular_1"
    end
    job.qos = qos
    job.partition = job.partition or (cpu and "regular_milan_ss11" or "gpu_ss11")
    return slurm.SUCCESS
end

function slurm_job_modify(_, _, _, _)
    return slurm.SUCCESS
end
