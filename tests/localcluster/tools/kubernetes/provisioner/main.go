// Command provisioner makes and removes the volumes of the embedded cluster's default storage class.
//
// All nodes run on one machine, so a folder of that machine is a volume that every node can mount:
// ReadWriteMany works, and no helper pod is needed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
)

type folderProvisioner struct{ root string }

// Provision makes the volume's folder, writable for pods of any user.
func (p folderProvisioner) Provision(
	_ context.Context, options controller.ProvisionOptions,
) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	folder := filepath.Join(p.root, options.PVName)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("making the folder of %s: %w", options.PVName, err)
	}
	// MkdirAll's mode is cut by the umask.
	if err := os.Chmod(folder, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("opening the folder of %s: %w", options.PVName, err)
	}
	filesystem := corev1.PersistentVolumeFilesystem
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			VolumeMode:                    &filesystem,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: options.PVC.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: folder},
			},
		},
	}
	return volume, controller.ProvisioningFinished, nil
}

// Delete removes the folder of a volume that this program made, and no other folder.
func (p folderProvisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	if volume.Spec.HostPath == nil || volume.Spec.HostPath.Path != filepath.Join(p.root, volume.Name) {
		return fmt.Errorf("volume %s does not lie in %s: not removed", volume.Name, p.root)
	}
	return os.RemoveAll(volume.Spec.HostPath.Path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "file with the API server's address and credentials")
	name := flag.String("name", "", "provisioner named by the storage class")
	root := flag.String("root", "", "folder in which volumes are made")
	klog.InitFlags(nil)
	flag.Parse()
	if *kubeconfig == "" || *name == "" || !filepath.IsAbs(*root) {
		klog.Fatal("--kubeconfig, --name and an absolute --root are needed")
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatalf("reading %s: %v", *kubeconfig, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client := kubernetes.NewForConfigOrDie(config)
	controller.NewProvisionController(
		klog.FromContext(ctx), client, *name, folderProvisioner{root: *root}, controller.LeaderElection(false),
	).Run(ctx)
}
